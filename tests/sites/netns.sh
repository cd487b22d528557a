#!/usr/bin/env bash
# Three machines of their own network each, on one: namespaces behind a bridge, any of which can be cut off.
#
#   netns.sh up|down             as root; needs iproute2, which `up` installs on Debian
#   netns.sh cut N|heal N        N is 1, 2 or 3. Silent, as a partition is: packets vanish, no connection is reset
#   netns.sh inside N COMMAND... becomes COMMAND in namespace N
#
# SITE_NETNS  prefix of all names (ht), at most 8 letters
# SITE_NET    their network (10.77.0): this machine is .1, namespace N is .1N
#
# Exit status: 69 where this machine cannot have them (not root, or a kernel without them), 1 where it should and has not.
set -euo pipefail

prefix=${SITE_NETNS:-ht}
net=${SITE_NET:-10.77.0}

up() {
    local i
    ((EUID == 0)) || { echo "netns.sh: needs root" >&2; exit 69; }
    command -v ip >/dev/null || flock /tmp/halotile-apt.lock bash -c \
        'apt-get update -qq && apt-get install -y -qq --no-install-recommends iproute2 >/dev/null' || exit 69
    ! ip link show "${prefix}br" >/dev/null 2>&1 || { echo "netns.sh: they are there: another run's, or remains of one (netns.sh down)" >&2; exit 1; }
    ip link add "${prefix}br" type bridge || exit 69
    ip addr add "$net.1/24" dev "${prefix}br"
    ip link set "${prefix}br" up
    for i in 1 2 3; do
        ip netns add "$prefix$i"
        ip link add "${prefix}v$i" type veth peer name eth0 netns "$prefix$i"
        ip link set "${prefix}v$i" master "${prefix}br" up
        ip -n "$prefix$i" addr add "$net.1$i/24" dev eth0
        ip -n "$prefix$i" link set eth0 up
        ip -n "$prefix$i" link set lo up
    done
}

cut() { ip link set "${prefix}v$1" down; }

heal() { ip link set "${prefix}v$1" up; }

inside() {
    local name=$prefix$1
    shift
    exec ip netns exec "$name" "$@"
}

down() {
    local i
    for i in 1 2 3; do
        ip netns pids "$prefix$i" 2>/dev/null | xargs --no-run-if-empty kill -9 || true # they would keep it alive
        ip link del "${prefix}v$i" 2>/dev/null || true
        ip netns del "$prefix$i" 2>/dev/null || true
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
