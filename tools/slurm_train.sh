#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGS...]

Trains under Slurm. ARGS are passed on to tools/train.py. Environment variables and their defaults:

  GPUS             total number of GPUs                           (8)
  GPUS_PER_NODE    GPUs per machine                               (8, or GPUS if that is less)
  CPUS_PER_TASK    CPU cores per process                          (5)
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
read -r -a srun_args <<<"${SRUN_ARGS:-}"

exec srun --partition="$1" --job-name="$2" \
    --gres="gpu:$gpus_per_node" --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="$cpus_per_task" --kill-on-bad-exit=1 "${srun_args[@]}" \
    "$(find_python)" -u "$ROOT/tools/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}"
