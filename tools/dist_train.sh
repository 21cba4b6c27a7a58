#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/dist_train.sh CONFIG NUM [ARGS...]

Trains on NUM GPUs of this machine, or in NUM processes on the CPU where there is no GPU.
ARGS are passed on to tools/train.py. Environment variables and their defaults:

  NNODES               number of machines                                     (1)
  MASTER_ADDR, PORT    address and port of the first machine, if several      (127.0.0.1, 29500)
  MAX_RESTARTS         how often all processes restart and resume after one fails   (0)
  MMKD_PYTHON          Python interpreter                                     (.venv, else python)
TEXT
}

[[ "${1:-}" == --help || "${1:-}" == -h ]] && { usage; exit 0; }
[[ $# -ge 2 ]] || { usage >&2; exit 2; }
require_positive NUM "$2"

launch "$2" "$ROOT/tools/train.py" "$1" --launcher pytorch "${@:3}"
