#!/usr/bin/env bash
# A real SLURM on one machine: munged, slurmctld and three slurmd, without systemd, control groups or accounting.
#
#   slurm.sh up|down|status      as root, on Debian; `up` says which SLURM_CONF to export
#
# SITE_SLURM  folder of all state (/tmp/halotile-slurm); `up` twice with one folder is refused
# SITE_NODES, SITE_CPUS, SITE_MEMORY_MB  nodes, and what each claims to have (3, 4, 12000); nothing binds the processes
# to it but the kill of a job that outgrows its --mem, and that of one that outlives its walltime
#
# Exit status: 69 where this machine cannot have one (not root, no packages), 1 where it should and has not.
set -euo pipefail

state=${SITE_SLURM:-/tmp/halotile-slurm}
nodes=${SITE_NODES:-3}
export SLURM_CONF=$state/slurm.conf
export DEBIAN_FRONTEND=noninteractive

install() {
    local tool
    for tool in munged slurmctld slurmd sbatch; do
        command -v "$tool" >/dev/null && continue
        flock /tmp/halotile-apt.lock bash -c \
            'apt-get update -qq && apt-get install -y -qq --no-install-recommends munge slurmctld slurmd slurm-client >/dev/null'
        return
    done
}

configure() {
    local port=$((20000 + RANDOM % 9000)) i # below the ports that the kernel hands out by itself
    cat <<CONF
ClusterName=site
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=socket=$state/munge/socket
StateSaveLocation=$state/ctld
SlurmctldPidFile=$state/slurmctld.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdPidFile=$state/slurmd.%n.pid
SlurmdSpoolDir=$state/spool.%n
SlurmdLogFile=$state/slurmd.%n.log
# no control groups, no affinity
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# a job that outgrows its --mem is killed; looked at every second
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$state/jobs.txt
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobRequeue=1
ReturnToService=2
# believe CPUs= and RealMemory= below, not the hardware
SlurmdParameters=config_overrides
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=3
MinJobAge=1800
CompleteWait=0
EnforcePartLimits=ALL
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for ((i = 1; i <= nodes; i++)); do
        echo "NodeName=n$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + i))" \
            "CPUs=${SITE_CPUS:-4} RealMemory=${SITE_MEMORY_MB:-12000}"
    done
}

up() {
    local i
    ((EUID == 0)) || { echo "slurm.sh: needs root" >&2; exit 69; }
    install || { echo "slurm.sh: SLURM is not installed, and apt-get does not bring it" >&2; exit 69; }
    mkdir -p "$state"/{ctld,munge}
    if [[ -s $state/slurmctld.pid ]] && kill -0 "$(<"$state/slurmctld.pid")" 2>/dev/null; then
        echo "slurm.sh: '$state' is up already; take it down, or set SITE_SLURM to another folder" >&2
        exit 1
    fi
    head -c 128 /dev/urandom >"$state/munge/key"
    chown -R munge: "$state/munge"
    chmod 755 "$state" "$state/munge"
    chmod 400 "$state/munge/key"
    runuser -u munge -- munged --key-file="$state/munge/key" --socket="$state/munge/socket" \
        --pid-file="$state/munge/pid" --log-file="$state/munge/log" --seed-file="$state/munge/seed"
    configure >"$SLURM_CONF"
    slurmctld
    for ((i = 1; i <= nodes; i++)); do
        mkdir -p "$state/spool.n$i"
        slurmd -N "n$i"
    done
    for ((i = 0; i < 300; i++)); do
        if [[ $(sinfo -h -t idle -o %D 2>/dev/null) == "$nodes" ]]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.1
    done
    echo "slurm.sh: the nodes did not come up within 30 s:" >&2
    tail -n 5 "$state"/*.log >&2
    down
    exit 1
}

# Ends the daemons by the ids that they wrote, and nothing by its name.
down() {
    local file pids=()
    scancel --quiet --user=root 2>/dev/null || true
    sleep 1
    for file in "$state"/slurmd.*.pid "$state/slurmctld.pid" "$state/munge/pid"; do
        [[ -s $file ]] && pids+=("$(<"$file")")
    done
    ((${#pids[@]})) && kill "${pids[@]}" 2>/dev/null
    for ((i = 0; i < 50; i++)); do
        kill -0 "${pids[@]}" 2>/dev/null || return 0
        sleep 0.1
    done
}

status() {
    sinfo
    squeue
}

case ${1-} in
up | down | status) "$1" ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
