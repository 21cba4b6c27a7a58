#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/dist_train.sh CONFIG NUM [ARGS...]

Trains on NUM GPUs of this machine, or in NUM processes on the CPU where there is no GPU.
ARGS are passed on to tools/train.py. Environment variables and their defaults:

  NNODES, NODE_RANK    number of machines, and the rank of this machine   (1, 0)
  MASTER_ADDR, PORT    address and port of the machine of rank 0          (127.0.0.1, 29500)
  MMKD_PYTHON          Python interpreter                                 (.venv, else python)
TEXT
}

[[ "${1:-}" == --help || "${1:-}" == -h ]] && { usage; exit 0; }
[[ $# -ge 2 ]] || { usage >&2; exit 2; }
require_positive NUM "$2"

launch "$2" "$ROOT/tools/train.py" "$1" --launcher pytorch "${@:3}"
