#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/dist_test.sh CONFIG CHECKPOINT NUM [ARGS...]

Evaluates on NUM GPUs of this machine, or in NUM processes on the CPU where there is no GPU.
ARGS are passed on to tools/test.py. Environment variables and their defaults:

  NNODES               number of machines                                     (1)
  MASTER_ADDR, PORT    address and port of the first machine, if several      (127.0.0.1, 29500)
  MMKD_PYTHON          Python interpreter                                     (.venv, else python)
TEXT
}

[[ "${1:-}" == --help || "${1:-}" == -h ]] && { usage; exit 0; }
[[ $# -ge 3 ]] || { usage >&2; exit 2; }
require_positive NUM "$3"

launch "$3" "$ROOT/tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
