#!/bin/bash
# A SLURM of three nodes on this machine, for tests: munge, slurmctld, slurmdbd with MariaDB, and one slurmd for each node.
#   scripts/slurm/cluster.sh install     Debian's packages
#   scripts/slurm/cluster.sh start       idempotent; prints the SLURM_CONF with which the commands find this cluster
#   scripts/slurm/cluster.sh stop        ends its jobs, and its own processes by their ids
#   scripts/slurm/cluster.sh stop_accounting   ends slurmdbd alone; start brings it back
# Needs root. No systemd, no cgroups, loopback alone; nothing below /etc/slurm is read or written.
# Each node claims CPUS cores, MEMORY MB and two GPUs; /node-local is a folder of its own.
# Partitions: work (n1 and n2, default); low and high (n3): jobs of high pre-empt those of low, which get their --signal,
# or SIGTERM, and are requeued. Jobs of low may run for a day.
set -euo pipefail
NODES="n1 n2 n3" CPUS=${CPUS:-4} MEMORY=${MEMORY:-8000}
DIR=${MERGESTREAM_SLURM_DIR:-/var/lib/mergestream-slurm}  # configuration, state, logs, process ids
export SLURM_CONF=$DIR/slurm.conf MYSQL_UNIX_PORT=$DIR/db.sock
DAEMONS="$NODES slurmctld slurmdbd mariadbd munged"  # in the order in which they stop

# After a reboot, the id in a file may be that of a process of somebody else: its command tells.
alive() {
    local words
    [ -s "$DIR/$1.pid" ] && words=$(tr '\0' ' ' <"/proc/$(cat "$DIR/$1.pid")/cmdline") || return 1
    case $1 in
    n?) [[ $words =~ ^([^ ]*/)?slurmd\ .*-N\ $1\  ]] ;;
    *) [[ $words =~ ^([^ ]*/)?$1\  ]] ;;
    esac
} 2>/dev/null
wait_for() { for _ in $(seq 150); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "waited in vain: $*" >&2; return 1; }
stopped() { ! alive "$1"; }
installed() { for program in munged slurmctld slurmd slurmdbd mariadbd srun unshare; do command -v $program >/dev/null || return 1; done; }
idle() { [ "$(sinfo -h -N -t idle,alloc,mix -o %N | sort -u | wc -l)" = 3 ]; }
no_jobs() { [ -z "$(squeue -h -t running,completing)" ]; }

# A requeued job waits as long as its credentials live, two minutes unless cred_expire says otherwise.
settings() {
    cat <<CONF
ClusterName=mergestream
SlurmctldHost=$(hostname -s)(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=10
SlurmUser=root
SlurmdUser=root
SlurmctldPort=26817
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/%n.pid
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=1
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=15
MinJobAge=3600
InactiveLimit=0
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=26819
JobAcctGatherType=jobacct_gather/none
$(for name in $NODES; do
    echo "NodeName=$name NodeHostname=$name NodeAddr=127.0.0.1 Port=2700${name#n} CPUs=$CPUS RealMemory=$MEMORY Gres=gpu:2"
done)
PartitionName=work Nodes=n[1-2] Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=OFF State=UP
PartitionName=low Nodes=n3 MaxTime=1-00:00:00 DefaultTime=60 PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE State=UP
PartitionName=high Nodes=n3 MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
CONF
}

start_munge() {
    install -d -o munge -g munge -m 755 /run/munge
    [ -s /etc/munge/munge.key ] || (umask 077; head -c 128 /dev/urandom >/etc/munge/munge.key; chown munge: /etc/munge/munge.key)
    munge -n </dev/null >/dev/null 2>&1 && return  # this machine's own
    runuser -u munge -- /usr/sbin/munged
    wait_for munge -n
    cp /run/munge/munged.pid "$DIR/munged.pid"
}

start_accounting() {
    [ -d "$DIR/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$DIR/db" --skip-test-db \
        --auth-root-authentication-method=socket >/dev/null 2>&1
    if ! alive mariadbd; then
        # Its socket is in a folder that only root and its own user enter.
        setsid mariadbd --no-defaults --user=root --datadir="$DIR/db" --skip-networking --pid-file="$DIR/db.pid" \
            --socket="$MYSQL_UNIX_PORT" --innodb-buffer-pool-size=64M >>"$DIR/log/mariadbd.log" 2>&1 </dev/null &
        echo $! >"$DIR/mariadbd.pid"
        wait_for mariadb-admin --no-defaults --socket="$MYSQL_UNIX_PORT" ping
    fi
    install -m 600 /dev/null "$DIR/slurmdbd.conf"
    printf '%s\n' DbdHost=localhost DbdPort=26819 SlurmUser=root AuthType=auth/munge "PidFile=$DIR/slurmdbd.pid" \
        "LogFile=$DIR/log/slurmdbd.log" StorageType=accounting_storage/mysql StorageHost=localhost StorageUser=root \
        StorageLoc=slurm_acct >"$DIR/slurmdbd.conf"
    alive slurmdbd || slurmdbd
    wait_for sacctmgr -n list cluster
    sacctmgr -i add cluster mergestream >/dev/null 2>&1 || true
}

start_node() {
    alive "$1" && return
    mkdir -p "$DIR/spool/$1" "$DIR/local/$1" /node-local
    unshare --uts --mount sh -c "hostname $1 && mount --bind $DIR/hosts /etc/hosts &&
        mount --bind $DIR/local/$1 /node-local && exec slurmd -f $SLURM_CONF -N $1"
}

# As on a cluster whose accounting is down.
stop_accounting() {
    kill "$(cat "$DIR/slurmdbd.pid")"
    wait_for stopped slurmdbd
}

start() {
    mkdir -p "$DIR"/{state,spool,log}
    settings >"$DIR/slurm.conf"
    # Devices that are no GPUs: jobs get CUDA_VISIBLE_DEVICES as with real ones.
    echo "Name=gpu File=/dev/tty[0-1]" >"$DIR/gres.conf"
    { cat /etc/hosts; for name in $NODES; do echo "127.0.0.1 $name"; done; } >"$DIR/hosts"
    start_munge
    start_accounting
    alive slurmctld || slurmctld
    for name in $NODES; do start_node "$name"; done
    wait_for idle
    echo "$SLURM_CONF"
}

stop() {
    if alive slurmctld; then
        scancel --user=root || true
        wait_for no_jobs || true
    fi
    local left=0
    for name in $DAEMONS; do
        if alive "$name"; then
            kill "$(cat "$DIR/$name.pid")" || true  # it may just have ended
            wait_for stopped "$name" || { left=1; continue; }
        fi
        rm -f "$DIR/$name.pid"
    done
    return $left
}

case "${1:-}" in
install) DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm slurmdbd munge mariadb-server ;;
installed) installed ;;
start) start ;;
stop) stop ;;
stop_accounting) stop_accounting ;;
*) sed -n '2,6s/^# //p' "$0"; exit 1 ;;
esac
