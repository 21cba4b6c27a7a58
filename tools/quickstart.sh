#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The options are shown without an environment: any Python will do for that.
for argument in "$@"; do
    if [[ "$argument" == --help || "$argument" == -h ]]; then
        exec "${MMKD_PYTHON:-python3}" "$ROOT/tools/quickstart.py" --help
    fi
done

if [[ -z "${MMKD_PYTHON:-}" ]]; then
    bash "$ROOT/tools/setup_env.sh"
else
    # Nothing is written into a foreign environment, so mmkd must be found from here.
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$(find_python)" "$ROOT/tools/quickstart.py" "$@"
