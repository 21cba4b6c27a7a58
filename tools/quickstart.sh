#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

help=
for argument in "$@"; do
    if [[ "$argument" == --help || "$argument" == -h ]]; then
        help=yes  # printing the help does not need a set-up that takes minutes
    fi
done

if [[ -z "${MMKD_PYTHON:-}" && -z "$help" ]]; then
    bash "$ROOT/tools/setup_env.sh"
else
    # mmkd is not installed into an environment that the user provides, but imported from this checkout.
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$(find_python)" "$ROOT/tools/quickstart.py" "$@"
