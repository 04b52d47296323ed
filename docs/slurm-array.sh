#!/bin/bash
# One job on eight GPUs of a Slurm cluster, an array task a shard; then one job that publishes:
#   shards=$(sbatch --parsable slurm-array.sh)
#   sbatch --dependency=afterok:"$shards" --ntasks=1 --mem=4G --wrap="batch-route commit /shared/routed"
# INPUT, OUTPUT, adapters and the base lie on a file system that all nodes see.
#SBATCH --job-name=batch-route
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --gpus-per-task=1
#SBATCH --mem=16G
#SBATCH --time=06:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
# Slurm tells the task a minute before its time is up, and when a partition takes its node back: the shard keeps
# what is done. What is left is scored by the same task, started again.
set -u
export BATCH_ROUTE_ADAPTERS=/shared/adapters
shards=$((SLURM_ARRAY_TASK_MAX + 1))

srun batch-route /shared/requests.parquet /shared/routed --shard "$SLURM_ARRAY_TASK_ID/$shards" --log-json
code=$?
# 75: the engine or the machine failed. 143: stopped, by the signal above for one. At most four times.
if { [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt 4 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
