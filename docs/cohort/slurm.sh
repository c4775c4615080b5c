#!/usr/bin/env bash
# A cohort on machines that Slurm gives: sbatch docs/cohort/slurm.sh MANIFEST OUTPUT --task 1 --model MODELS
#
# All machines must see MANIFEST, its volumes, OUTPUT, MODELS and the environment with pantherseg[cohort] under the same
# paths. The same command goes on after the time limit or a failure.
#SBATCH --job-name=cohort
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=08:00:00
# Ray has no isolation: two clusters on one machine would find each other.
#SBATCH --exclusive
## With GPUs: one worker each.
##SBATCH --gpus-per-node=1
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of this job alone, in case another user's cluster is on the machine all the same.
port=$((20000 + SLURM_JOB_ID % 10000))

export RAY_USAGE_STATS_ENABLED=0
# In seconds, for machines that start slowly; Ray's own limit is 30.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Ray would count all CPUs and GPUs of a machine, whatever Slurm gives to the job.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --object-store-memory 100000000 \
  -- pantherseg cohort run "$@" --address "$head:$port"
