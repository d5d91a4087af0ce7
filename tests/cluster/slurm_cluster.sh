#!/bin/sh
# Run a command in a SLURM cluster of one node:  slurm_cluster.sh FOLDER COMMAND...
# To be started in a network namespace and in mount and process namespaces of its own, which end the daemons.
set -eu
home=$1
shift
mkdir -p "$home/state" "$home/spool" "$home/log"
chmod 755 "$home"
host=$(hostname -s)
cp /etc/hosts "$home/hosts"
echo "127.0.0.1 $host" >> "$home/hosts"
mount --bind "$home/hosts" /etc/hosts
ip address add 10.99.0.1/32 dev lo 2>/dev/null || true # names are not resolved on a host with 127.0.0.1 alone
head -c 1024 /dev/urandom > "$home/munge.key"
chmod 400 "$home/munge.key"
munged --force --key-file="$home/munge.key" --socket="$home/munge.sock" --pid-file="$home/munged.pid" \
  --log-file="$home/log/munged.log" --seed-file="$home/seed" --num-threads=1
cat > "$home/slurm.conf" <<CONFIGURATION
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge.sock
SlurmctldPort=7817
SlurmdPort=7818
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=64 RealMemory=300000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONFIGURATION
export SLURM_CONF="$home/slurm.conf"
slurmctld -c
slurmd -c -N "$host"
exec "$@"
