#!/bin/sh
# Plan a run, and submit its workers and its last step to SLURM. Options after LOCATION are for sbatch.
#   ./slurm.sh shop.toml /shared/runs/tonight --partition=batch
set -eu
spec=$1
location=$2
shift 2
here=$(dirname "$0")
nearcast plan "$spec" --work "$location"
work=$(sbatch --parsable "$@" "$here/slurm-work.sh" "$location")
gather=$(sbatch --parsable --dependency="afterok:$work" --kill-on-invalid-dep=yes "$here/slurm-gather.sh" "$location")
echo "workers: job $work; last step: job $gather; progress: nearcast watch $location"
