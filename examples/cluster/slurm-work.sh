#!/bin/sh
# Workers of a planned run, as an array job of SLURM. slurm.sh submits it.
#SBATCH --job-name=nearcast-work
#SBATCH --array=0-39
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --requeue
# A common file system needs no bucket: LOCATION may be a folder on it. The cache is best on a local disk.
export NEARCAST_CACHE="${NEARCAST_CACHE:-${TMPDIR:-/tmp}/nearcast}"
nearcast work "$1"
code=$?
# 14: the storage did not answer; 15: another worker was lost. Up to five more attempts; else the code tells why.
if { [ "$code" -eq 14 ] || [ "$code" -eq 15 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
