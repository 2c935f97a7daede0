#!/usr/bin/env bash
# A real Slurm of two nodes on one Debian machine: slurm_cluster.sh up|down FOLDER, as root.
#
# Both nodes are slurmd processes of this host, told apart by name and port. GPUs are null devices: they can be asked for
# and given out, not computed on. Partition `urgent` preempts `batch`. `up` prints the SLURM_CONF to use.
set -euo pipefail

command=${1:-}
folder=${2:-}
case $command in up | down) ;; *) echo "usage: $0 up|down FOLDER" >&2; exit 2 ;; esac
[ -n "$folder" ] || { echo "usage: $0 up|down FOLDER" >&2; exit 2; }
socket=$folder/munge/munge.socket
port=${SLURM_TEST_PORT:-17817}
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

write_config() {
  mkdir -p "$folder"/{state,log,munge,spool.n1,spool.n2}
  chmod 755 "$folder"
  chmod 711 "$folder/munge"
  local device
  for device in 0 1; do [ -e "$folder/gpu$device" ] || mknod "$folder/gpu$device" c 1 3; done
  cat > "$SLURM_CONF" <<CONF
ClusterName=dipole
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
# No cgroups: they may belong to somebody else here.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=10
SlurmdTimeout=20
InactiveLimit=0
MinJobAge=3600
KillWait=30
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=batch Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
  printf 'NodeName=%s Name=gpu File=%s\n' n1 "$folder/gpu[0-1]" n2 "$folder/gpu[0-1]" > "$folder/gres.conf"
}

wait_until() { # SECONDS COMMAND…
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}

is_up() { kill -0 "$(cat "$folder/$1.pid" 2>/dev/null)" 2>/dev/null; }
is_down() { ! is_up "$1"; }
answers() { munge -S "$socket" -n >/dev/null 2>&1; }
nodes_are_idle() { [ "$(sinfo -h -N -p batch -t idle,mix,alloc -o %N 2>/dev/null | sort -u | wc -l)" = 2 ]; }

up() {
  write_config
  if [ ! -s "$folder/munge/munge.key" ]; then
    dd if=/dev/urandom of="$folder/munge/munge.key" bs=128 count=1 status=none
    chmod 600 "$folder/munge/munge.key"
  fi
  # --force: the folder may lie in a world-writable one, such as the temporary folder.
  answers || munged --force --key-file="$folder/munge/munge.key" --socket="$socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" 2>/dev/null
  wait_until 20 answers
  is_up slurmctld || slurmctld -c
  local node
  for node in n1 n2; do is_up "slurmd.$node" || slurmd -N "$node"; done
  wait_until 60 nodes_are_idle || { tail -n 20 "$folder"/log/*.log >&2; exit 1; }
  echo "$SLURM_CONF"
}

no_job_runs() { [ -z "$(squeue -h -t running,completing,suspended 2>/dev/null)" ]; }

down() {
  # Daemons that end leave what they run: first the jobs, by force where they do not go.
  scancel -u root 2>/dev/null || true
  wait_until 10 no_job_runs || scancel --signal=KILL --full -u root 2>/dev/null || true
  wait_until 20 no_job_runs || true
  local daemon
  for daemon in slurmd.n1 slurmd.n2 slurmctld munged; do
    is_up "$daemon" || continue
    kill "$(cat "$folder/$daemon.pid")"
    wait_until 20 is_down "$daemon" || kill -9 "$(cat "$folder/$daemon.pid")"
  done
}

"$command"
