#!/usr/bin/env bash
# Three machines of their own network each, on one: namespaces behind a bridge, any of which can be cut off.
#
#   netns.sh up             as root; needs iproute2, which `up` installs on Debian; says N, the number of their network
#   netns.sh down N
#   netns.sh cut N I        I is 1, 2 or 3. Silent, as a partition is: packets vanish, no connection is reset
#   netns.sh heal N I
#   netns.sh inside N I COMMAND...  becomes COMMAND in namespace I
#
# Their network is 10.77.N: this machine is .1, namespace I is .1I. Each `up` has one of its own, because networks
# belong to the kernel: another session may have some, and one that was killed leaves its own behind.
#
# Exit status: 69 where this machine cannot have them (not root, or a kernel without them), 1 where it should and has not.
set -euo pipefail

# The bridge is the claim: of two that want one number, one gets it.
claim() {
    local number
    for ((number = 1; number < 255; number++)); do
        ip link show "ht${number}br" >/dev/null 2>&1 && continue
        ip link add "ht${number}br" type bridge 2>/dev/null && { echo "$number"; return; }
        ip link show "ht${number}br" >/dev/null 2>&1 || exit 69
    done
    echo "netns.sh: all 254 networks are taken, by sessions or by remains of some (netns.sh down N)" >&2
    exit 1
}

up() {
    local i number prefix net
    ((EUID == 0)) || { echo "netns.sh: needs root" >&2; exit 69; }
    command -v ip >/dev/null || flock /tmp/halotile-apt.lock bash -c \
        'apt-get update -qq && apt-get install -y -qq --no-install-recommends iproute2 >/dev/null' || exit 69
    number=$(claim)
    prefix=ht$number net=10.77.$number
    ip addr add "$net.1/24" dev "${prefix}br"
    ip link set "${prefix}br" up
    for i in 1 2 3; do
        ip netns add "${prefix}n$i"
        ip link add "${prefix}v$i" type veth peer name eth0 netns "${prefix}n$i"
        ip link set "${prefix}v$i" master "${prefix}br" up
        ip -n "${prefix}n$i" addr add "$net.1$i/24" dev eth0
        ip -n "${prefix}n$i" link set eth0 up
        ip -n "${prefix}n$i" link set lo up
    done
    echo "$number"
}

cut() { ip link set "ht$1v$2" down; }

heal() { ip link set "ht$1v$2" up; }

inside() {
    local name=ht$1n$2
    shift 2
    exec ip netns exec "$name" "$@"
}

down() {
    local i prefix=ht$1
    for i in 1 2 3; do
        ip netns pids "${prefix}n$i" 2>/dev/null | xargs --no-run-if-empty kill -9 || true # they would keep it alive
        ip link del "${prefix}v$i" 2>/dev/null || true
        ip netns del "${prefix}n$i" 2>/dev/null || true
    done
    ip link del "${prefix}br" 2>/dev/null || true
}

case ${1-} in
up | down | cut | heal | inside) "$@" ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
