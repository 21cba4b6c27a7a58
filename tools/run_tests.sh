#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/run_tests.sh [--stack onedl|upstream] [PYTEST ARGS...]

Sets up the environment if need be, then runs the linters (ruff, mdformat, codespell, mypy) and
pytest. '-m "not slow"' runs the fast tests only. With MMKD_PYTHON=/path/to/python that interpreter
is used as it is and nothing is set up; it needs the packages of mmkd's "dev" extra.
TEXT
}

stack=onedl
pytest_args=()
while [[ $# -gt 0 ]]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --stack) stack="${2:-}"; shift 2 || { usage >&2; exit 2; } ;;
        --stack=*) stack="${1#*=}"; shift ;;
        *) pytest_args+=("$1"); shift ;;
    esac
done

case "$stack" in
    onedl) venv="$ROOT/.venv" ;;
    upstream) venv="$ROOT/.venv-upstream" ;;
    *) die "--stack must be onedl or upstream, not '$stack'" ;;
esac

if [[ -z "${MMKD_PYTHON:-}" ]]; then
    bash "$ROOT/tools/setup_env.sh" --stack "$stack"
else
    # Nothing is installed into a foreign environment, so Python must find mmkd in this checkout.
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
fi
python="$(find_python "$venv")"
# The scripts that tests start must run in the environment under test.
export MMKD_PYTHON="$python"

# Threads that spin while they wait would starve the other processes that tests start.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# Test files run in parallel (unless a foreign environment lacks pytest-xdist), each with one thread,
# because small tensors gain nothing from more.
cores="$(count_cores)"
workers="$((cores < 4 ? cores : 4))"
parallel=()
if "$python" -c 'import xdist' 2>/dev/null; then
    parallel=(-n "$workers" --dist loadfile --no-loadscope-reorder)
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

cd "$ROOT"
echo "== ruff"
"$python" -m ruff check .
echo "== mdformat"
"$python" -m mdformat --check ./*.md configs docs mmkd tests tools
echo "== codespell"
"$python" -m codespell_lib
echo "== mypy"
"$python" -m mypy
echo "== pytest ($stack stack)"
status=0
"$python" -m pytest "${parallel[@]}" "${pytest_args[@]}" || status=$?
echo "== $((SECONDS / 60)) min $((SECONDS % 60)) s in all"
exit "$status"
