#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGS...]

Submits a training to Slurm as a batch job that is requeued, and resumes, when it is preempted or reaches
its time limit. Inside a job (sbatch, salloc) it trains in this job instead; PARTITION and JOB_NAME are
then unused. ARGS are passed on to tools/train.py. Environment variables and their defaults:

  GPUS             total number of GPUs                           (8)
  GPUS_PER_NODE    GPUs per machine                               (8, or GPUS if that is less)
  CPUS_PER_TASK    CPU cores per process                          (5)
  SBATCH_ARGS      additional options of sbatch, such as --time=8:00:00, separated by spaces
  SRUN_ARGS        additional options of srun, separated by spaces
  MMKD_PYTHON      Python interpreter                             (.venv, else python)
TEXT
}

[[ "${1:-}" == --help || "${1:-}" == -h ]] && { usage; exit 0; }
[[ $# -ge 4 ]] || { usage >&2; exit 2; }

gpus="${GPUS:-8}"
require_positive GPUS "$gpus"
gpus_per_node="${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}"
require_positive GPUS_PER_NODE "$gpus_per_node"
cpus_per_task="${CPUS_PER_TASK:-5}"
require_positive CPUS_PER_TASK "$cpus_per_task"
command -v srun >/dev/null || die "srun was not found: this script needs Slurm"
resources=(--gres="gpu:$gpus_per_node" --ntasks="$gpus" --ntasks-per-node="$gpus_per_node"
    --cpus-per-task="$cpus_per_task")

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    # Only batch jobs can be requeued. The signal comes 120 s before the time limit.
    read -r -a sbatch_args <<<"${SBATCH_ARGS:-}"
    mkdir -p "$4"
    exec sbatch --partition="$1" --job-name="$2" "${resources[@]}" --requeue --signal=USR1@120 \
        --open-mode=append --output="$4/slurm-%j.log" "${sbatch_args[@]}" \
        --wrap="exec bash $(printf '%q ' "$ROOT/tools/slurm_train.sh" "$@")"
fi

read -r -a srun_args <<<"${SRUN_ARGS:-}"
status=0 terminated=no
trap 'terminated=yes' TERM
srun "${resources[@]}" --kill-on-bad-exit=1 "${srun_args[@]}" \
    "$(find_python)" -u "$ROOT/tools/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}" || status=$?
if [[ "$status" -eq 75 && "$terminated" == no ]]; then
    # Interrupted and saved before the time limit. A job that is terminated is either preempted, and Slurm
    # itself requeues it, or canceled.
    scontrol requeue "$SLURM_JOB_ID" ||
        echo "Job $SLURM_JOB_ID cannot be requeued; submit it again with --resume." >&2
fi
exit "$status"
