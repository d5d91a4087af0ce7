#!/bin/sh
# The last step of a planned run: makes the snapshot, and removes the results of the tasks. slurm.sh submits it.
#SBATCH --job-name=nearcast-gather
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
nearcast gather "$1"
