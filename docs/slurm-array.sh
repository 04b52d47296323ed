#!/bin/bash
# One job on eight GPUs of a Slurm cluster: one array task per shard, then one job that publishes.
#   shards=$(sbatch --parsable docs/slurm-array.sh)
#   sbatch --dependency=afterok:"$shards" --kill-on-invalid-dep=yes --ntasks=1 --mem=4G --time=02:00:00 \
#     --wrap="/shared/batch-route/.venv/bin/batch-route commit /shared/routed"
# Add --partition and --account as your cluster wants them. If a shard fails for good, the second job is cancelled
# (--kill-on-invalid-dep); see why with `sacct -j $shards`, submit both again, and only what is missing is scored.
# The clone with its .venv, the input, the output, the adapters and the base are on a file system that all nodes mount.
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
# Slurm sends SIGTERM a minute before the time limit, and when a partition takes its node back: the shard saves its work. What is
# left is scored by the same task when it starts again.
set -u
export PATH=/shared/batch-route/.venv/bin:$PATH
export BATCH_ROUTE_ADAPTERS=/shared/adapters
export BATCH_ROUTE_BASES=/shared/bases # expanded base models; let one run or `--dry-run` fill it first, then all share it
# Compiled kernels, one folder per task: tasks that start together must not share it, and $HOME is often shared.
export VLLM_CACHE_ROOT=${TMPDIR:-/tmp}/vllm-$SLURM_ARRAY_TASK_ID
shards=$((SLURM_ARRAY_TASK_MAX + 1))

# srun does not take --cpus-per-task over from sbatch (since Slurm 22.05)
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" batch-route /shared/requests.parquet /shared/routed --shard "$SLURM_ARRAY_TASK_ID/$shards" --log-json
code=$?
# 4: another job holds the output, or the file system has not released a lost node's lock yet. 75: the engine or the machine failed.
# 130, 143: stopped, for example by the signal above. 137: killed. Requeued at most four times.
case "$code" in
  4 | 75 | 130 | 137 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 4 ]; then
      scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    fi
    ;;
esac
exit "$code"
