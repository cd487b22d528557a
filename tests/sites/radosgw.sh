#!/usr/bin/env bash
# A real S3 server that checks signatures and keeps what it has acknowledged: Ceph, of one monitor, one store in a plain
# file, and the gateway (radosgw), on loopback, without systemd.
#
#   radosgw.sh up|down      as root, on Debian; `up` writes the endpoint to SITE_S3/endpoint
#   radosgw.sh kill|start   kill -9 of the gateway; its next start
#
# SITE_S3  folder of all state (/tmp/halotile-s3); `up` twice with one folder is refused
# SITE_S3_BYTES  what the store may hold (2 GB, taken as it is used)
#
# The access key is `test`, the secret `testtest`.
#
# Exit status: 69 where this machine cannot have one (not root, no packages), 1 where it should and has not.
set -euo pipefail

state=${SITE_S3:-/tmp/halotile-s3}
export CEPH_CONF=$state/ceph.conf CEPH_ARGS="--conf $state/ceph.conf"
export DEBIAN_FRONTEND=noninteractive

install() {
    local tool
    for tool in ceph-mon ceph-osd radosgw radosgw-admin curl; do
        command -v "$tool" >/dev/null && continue
        flock /tmp/halotile-apt.lock bash -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends \
            ceph-mon ceph-osd ceph-common radosgw curl >/dev/null'
        return
    done
}

configure() {
    local port=$1
    cat <<CONF
[global]
fsid = $(</proc/sys/kernel/random/uuid)
mon initial members = a
mon host = [v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]
auth cluster required = none
auth service required = none
auth client required = none
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind ipv6 = false
run dir = $state/run
admin socket = $state/run/\$name.asok
pid file = $state/run/\$name.pid
log file = $state/log/\$name.log
# one copy of everything, on one disk, however full
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 2000
mon data avail crit = 1
mon data avail warn = 2
[mon.a]
mon data = $state/mon
[osd.0]
osd data = $state/osd
osd objectstore = bluestore
bluestore block size = ${SITE_S3_BYTES:-2147483648}
bluestore block create = true
bluestore cache autotune = false
bluestore cache size = 67108864
osd memory target = 939524096
osd op num shards = 2
[client.gateway]
rgw data = $state/gateway
rgw dns name = localhost
rgw thread pool size = 32
# without authentication the gateway's own mode, secure, cannot be had
ms mon client mode = crc
CONF
}

start() {
    local i port
    port=$(<"$state/port")
    radosgw -n client.gateway --rgw-frontends="beast endpoint=127.0.0.1:$port" >/dev/null 2>&1
    for ((i = 0; i < 300; i++)); do
        curl -s -o /dev/null "http://127.0.0.1:$port/" && return
        sleep 0.1
    done
    echo "radosgw.sh: the gateway did not answer within 30 s:" >&2
    tail -n 5 "$state"/log/*.log >&2
    down
    exit 1
}

up() {
    local i disk port=$((20000 + RANDOM % 9000)) # below the ports that the kernel hands out by itself
    ((EUID == 0)) || { echo "radosgw.sh: needs root" >&2; exit 69; }
    install || { echo "radosgw.sh: Ceph is not installed, and apt-get does not bring it" >&2; exit 69; }
    if [[ -s $state/port ]]; then
        echo "radosgw.sh: '$state' is up already; take it down, or set SITE_S3 to another folder" >&2
        exit 1
    fi
    disk=$(</proc/sys/kernel/random/uuid)
    mkdir -p "$state"/{mon,osd,gateway,run,log}
    configure "$port" >"$CEPH_CONF"
    echo "$((port + 2))" >"$state/port"
    echo "http://127.0.0.1:$((port + 2))" >"$state/endpoint"
    monmaptool --create --clobber --fsid "$(ceph-conf --lookup fsid)" \
        --addv a "$(ceph-conf --lookup 'mon host')" "$state/monmap" >/dev/null
    ceph-mon -i a --mkfs --monmap "$state/monmap" >/dev/null 2>&1
    ceph-mon -i a
    timeout 30 ceph osd new "$disk" >/dev/null
    ceph-osd -i 0 --mkfs --osd-uuid "$disk" >/dev/null 2>&1
    timeout 30 ceph osd crush add osd.0 1.0 root=default host=h0 >/dev/null 2>&1
    ceph-osd -i 0 >/dev/null 2>&1
    for ((i = 0; i < 200; i++)); do
        ceph osd stat 2>/dev/null | grep -q '1 up' && break
        sleep 0.1
    done
    start
    radosgw-admin -n client.gateway user create --uid=test --display-name=test \
        --access-key=test --secret-key=testtest >/dev/null 2>&1
    cat "$state/endpoint"
}

kill_gateway() { kill -9 "$(<"$state/run/client.gateway.pid")"; }

# Ends the daemons by the ids that they wrote, and nothing by its name.
down() {
    local name pids=()
    for name in client.gateway osd.0 mon.a; do
        [[ -s $state/run/$name.pid ]] && pids+=("$(<"$state/run/$name.pid")")
    done
    ((${#pids[@]})) || return 0
    kill -9 "${pids[@]}" 2>/dev/null || true # nothing of it is wanted any more
    for ((i = 0; i < 50; i++)); do
        kill -0 "${pids[@]}" 2>/dev/null || return 0
        sleep 0.1
    done
}

case ${1-} in
up | down | start) "$1" ;;
kill) kill_gateway ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
