# Sourced by the scripts in this folder: it defines where the checkout is and which Python is used.

# An exported CDPATH would make cd print, and look elsewhere.
ROOT="$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)"

# Some scripts change directory, so a relative path is made absolute first.
if [[ "${MMKD_PYTHON:-}" == */* && "${MMKD_PYTHON}" != /* ]]; then
    MMKD_PYTHON="$PWD/$MMKD_PYTHON"
fi

# Prints the interpreter: $MMKD_PYTHON, else the one in VENV (default: the .venv of this checkout), else
# the "python" in PATH.
find_python() {  # [VENV]
    local venv="${1:-$ROOT/.venv}"
    if [[ -n "${MMKD_PYTHON:-}" ]]; then
        echo "$MMKD_PYTHON"
    elif [[ -x "$venv/bin/python" ]]; then
        echo "$venv/bin/python"
    else
        echo python
    fi
}

die() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

require_positive() {  # NAME VALUE
    [[ "$2" =~ ^[1-9][0-9]*$ ]] || die "$1 must be a positive number, not '$2'"
}

count_cores() {
    # nproc would answer with OMP_NUM_THREADS where that is set.
    env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN
}

# Runs NUM connected processes on this machine, after a check of its GPUs. The exit status is theirs.
launch() {  # NUM SCRIPT [ARGS...]
    local num="$1" python gpus threads
    shift
    python="$(find_python)"
    gpus="$("$python" -c 'import torch; print(torch.cuda.device_count())')" ||
        die "$python cannot import torch; run 'bash tools/setup_env.sh' first"
    if [[ "$gpus" -eq 0 ]]; then
        # By default, every process takes all cores, or torchrun gives each process only one.
        threads=$(($(count_cores) / num))
        threads=$((threads > 0 ? threads : 1))
        if [[ -n "${OMP_NUM_THREADS:-}" && "${OMP_NUM_THREADS}" -lt "$threads" ]]; then
            threads="$OMP_NUM_THREADS"
        fi
        export OMP_NUM_THREADS="$threads"
        echo "No GPU found: $num process(es) on the CPU over gloo, $threads thread(s) each."
    elif [[ "$gpus" -lt "$num" ]]; then
        die "$num processes were requested, but only $gpus GPU(s) are visible (CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-unset})"
    fi
    # On one machine torch chooses a free port, so that several runs do not disturb each other.
    local rendezvous=(--standalone)
    if [[ "${NNODES:-1}" -gt 1 || -n "${PORT:-}" ]]; then
        rendezvous=(--nnodes="${NNODES:-1}" --rdzv_backend=c10d
            --rdzv_endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
            --rdzv_id="${RUN_ID:-${SLURM_JOB_ID:-$(basename "$2")}}")
    fi
    exec "$python" "$ROOT/tools/launch.py" "${rendezvous[@]}" --max_restarts="${MAX_RESTARTS:-0}" \
        --nproc_per_node="$num" "$@"
}
