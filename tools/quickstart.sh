#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

help=
for argument in "$@"; do
    if [[ "$argument" == --help || "$argument" == -h ]]; then
        help=yes  # not worth a set-up that takes minutes
        "$(find_python)" -c 'import mmengine' 2>/dev/null || die "run 'bash tools/setup_env.sh' first"
    fi
done

if [[ -z "${MMKD_PYTHON:-}" && -z "$help" ]]; then
    bash "$ROOT/tools/setup_env.sh"
else
    # Nothing is written into a foreign environment, so mmkd must be found from here.
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$(find_python)" "$ROOT/tools/quickstart.py" "$@"
