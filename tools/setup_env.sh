#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/setup_env.sh [--stack onedl|upstream] [--rebuild]

Makes an environment with PyTorch, MMCV's compiled ops, MMDetection, MMPretrain and mmkd, and
checks that it works. Finished steps are kept, so the script can be run again at any time.

  --stack onedl       the maintained OneDL packages, torch 2.11, in .venv  (default)
  --stack upstream    the last OpenMMLab releases, torch 2.1, in .venv-upstream
  --rebuild           start from an empty environment and compile MMCV's ops again

  PYTHON          the Python to make the environment with  (python3; 3.10 to 3.12, upstream 3.11)
  MMKD_INSTALLER  uv (pip where uv cannot be used) or pip  (uv)
  MMKD_CACHE      where compiled wheels are kept           (~/.cache/mmkd)
  MMKD_PYTHON     an interpreter that has everything already: only mmkd is installed into it
TEXT
}

stack=onedl
rebuild=no
while [[ $# -gt 0 ]]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --rebuild) rebuild=yes; shift ;;
        --stack) stack="${2:-}"; shift 2 || { usage >&2; exit 2; } ;;
        --stack=*) stack="${1#*=}"; shift ;;
        *) usage >&2; die "unknown argument '$1'" ;;
    esac
done

case "$stack" in
    onedl)
        venv="$ROOT/.venv"
        mmcv=onedl-mmcv
        newest=12
        ;;
    upstream)
        venv="$ROOT/.venv-upstream"
        mmcv=mmcv
        newest=11  # torch 2.1 has no build for later ones
        ;;
    *) die "--stack must be onedl or upstream, not '$stack'" ;;
esac
installer="${MMKD_INSTALLER:-uv}"
[[ "$installer" == uv || "$installer" == pip ]] || die "MMKD_INSTALLER must be uv or pip, not '$installer'"
constraints="$ROOT/requirements/constraints-$stack.txt"
wheels="${MMKD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmkd}/wheels"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
cd "$ROOT"

# ------------------------------------------------------------------------- progress and failures

step=0
steps=7
title=''
advice=''
log=''
logged=no
stopped=no
child=''
scratch=''
uv=''

begin() {  # TITLE
    step=$((step + 1))
    title="$1"
    advice=''
    logged=no
    started=$SECONDS
    echo "[$step/$steps] $title"
}

finish() {  # [REMARK]
    echo "      ${1:-done} ($((SECONDS - started)) s)"
}

# Runs a command with its output in the log and prints the elapsed time every 30 s.
run() {
    local next=30 since=$SECONDS
    logged=yes
    printf '\n== %s\n' "$*" >>"$log"
    # In a process group, because stopping this script must stop the compilers too.
    set -m
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.3
        if ((SECONDS - since >= next)); then
            echo "      ... $next s"
            next=$((next + 30))
        fi
    done
    local status=0
    wait "$child" || status=$?
    child=''
    return "$status"
}

on_exit() {
    local status=$?
    trap '' INT TERM
    [[ -z "$child" ]] || kill -TERM -- "-$child" 2>/dev/null || true
    [[ -z "$scratch" ]] || rm -rf "$scratch"
    if [[ "$stopped" == yes && $step -gt 0 ]]; then
        echo "Stopped in step $step ($title). Run it again to go on from there." >&2
    elif [[ $status -ne 0 && $step -gt 0 ]]; then
        {
            echo
            echo "FAILED in step $step of $steps: $title"
            if [[ "$logged" == yes ]]; then
                echo "The end of $log:"
                tail -n 20 "$log" | sed 's/^/    /'
            fi
            echo "${advice:-Once the cause is removed, run it again: finished steps are kept.}"
        } >&2
    fi
    exit "$status"
}
trap on_exit EXIT
trap 'stopped=yes; exit 130' INT
trap 'stopped=yes; exit 143' TERM

fail() {
    echo "      $*" >&2
    exit 1
}

# --------------------------------------------------------------------------- checks and installers

# Runs setup_checks.py from / because Python would find mmkd in this folder even if it is not installed.
check() {  # PYTHON COMMAND [ARGS...]
    (cd / && "$1" -W ignore "$ROOT/tools/setup_checks.py" "${@:2}")
}

# Succeeds if the pinned packages (all, or those named) are installed; the log lists the others.
pins_are_met() {  # [NAME...]
    check "$python" pins "$constraints" "$@" >>"$log"
}

# Sets "uv" unless pip is asked for: the one in PATH, else the one in this environment.
get_uv() {
    [[ "$installer" == uv && -z "$uv" ]] || return 0
    uv=uv
    if ! uv --version >/dev/null 2>&1; then
        uv="$venv/bin/uv"
        if [[ ! -x "$uv" ]] && ! run "$python" -m pip install -c "$constraints" uv; then
            echo "      uv cannot be installed (see $log); using pip, which takes longer"
            installer=pip
            return 0
        fi
    fi
    # Exported instead of passed as arguments, because the log shows those and a URL may have a password.
    local setting
    while IFS= read -r setting; do
        export "${setting?}"
    done < <(check "$python" uv-settings)
}

install() {  # ARGUMENTS OF "pip install"
    get_uv
    if [[ "$installer" == uv ]]; then
        run "$uv" pip install --python "$python" -c "$constraints" "$@" && return
        echo "      uv failed (see $log); using pip, which takes longer"
        installer=pip
    fi
    run "$python" -m pip install -c "$constraints" "$@"
}

# A stale file in uv's cache must not replace a wheel that was just built, so pip installs the ops.
install_ops() {
    run "$python" -m pip install -c "$constraints" --force-reinstall --no-deps "$cached"/*.whl && ops_load
}

ops_load() {
    logged=yes
    check "$python" load-ops >>"$log" 2>&1
}

build_ops() {
    local cuda=("FORCE_CUDA=1")
    # MMCV builds for any GPU that torch sees, whether or not there is an nvcc for it.
    [[ "$key" == *-cuda-* ]] || cuda=("FORCE_CUDA=0" "CUDA_VISIBLE_DEVICES=")
    echo "      compiling (7-9 minutes on 2 cores)"
    advice="The log has the compiler's messages. If the compiler was killed, memory ran out: set MAX_JOBS=1."
    # The wheel is moved to its place when it is finished, so that an interrupted build leaves nothing there.
    mkdir -p "$wheels"
    scratch="$(mktemp -d "$wheels/unfinished.XXXXXX")"
    # Always from source and without pip's cache, which does not know for which torch a wheel was
    # built. -g0: with debug information the wheel is 15 times as large.
    run env MMCV_WITH_OPS=1 "${cuda[@]}" MAX_JOBS="${MAX_JOBS:-$(count_cores)}" CFLAGS=-g0 \
        "$python" -m pip wheel --no-cache-dir --no-build-isolation --no-deps \
        --no-binary "$mmcv" --wheel-dir "$scratch" "$mmcv_pin"
    chmod 755 "$scratch"
    rm -rf "$cached"
    mv "$scratch" "$cached"
    scratch=''
    advice=''
}

# --------------------------------------------------------------------------------------- the work

use_foreign_environment() {
    steps=2
    begin "installing mmkd for $MMKD_PYTHON"
    advice="MMKD_PYTHON must name a Python with pip, setuptools and wheel."
    "$MMKD_PYTHON" -c '' || fail "$MMKD_PYTHON does not run"
    if check "$MMKD_PYTHON" has-mmkd; then
        finish "already there"
    else
        output="$("$MMKD_PYTHON" -m pip install --no-deps --no-build-isolation -e . 2>&1)" ||
            fail "$output"
        finish
    fi
    begin "checking the environment"
    advice="Install what is missing there, or unset MMKD_PYTHON to have an environment made."
    check "$MMKD_PYTHON" verify
    finish
}

make_environment() {
    # Two runs on one environment would spoil it. The lock ends with the last process that uses it.
    if command -v flock >/dev/null; then
        exec 9>"$venv.lock"
        if ! flock --nonblock 9; then
            echo "Another run of this script uses $venv; waiting for it."
            flock 9
        fi
    fi

    [[ "$rebuild" == no ]] || rm -rf "$venv"
    python="$venv/bin/python"

    begin "checking Python and the compiler"
    maker="$python"
    "$maker" -c 'import pip' 2>/dev/null || maker="${PYTHON:-python3}"
    advice="Name one with PYTHON=/path/to/python (--rebuild replaces an environment made with another)."
    "$maker" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, int(sys.argv[1])))' "$newest" ||
        fail "Python 3.10 to 3.$newest is needed, $maker is $("$maker" -V 2>&1 || true)"
    if [[ ! -f "$venv/mmcv-ops.txt" ]]; then
        # Checked here, so that the message comes before the downloads.
        advice="Install a C++ compiler and Python's headers (on Debian and Ubuntu: apt install g++ python3-dev)."
        command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler (${CXX:-c++})"
        headers="$("$maker" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
        [[ -f "$headers/Python.h" ]] || fail "no Python.h in $headers"
    fi
    finish "$("$maker" -V)"

    begin "making $(basename "$venv")"
    if [[ "$maker" == "$python" ]]; then
        finish "already there"
    else
        advice="Python's venv module is needed (on Debian and Ubuntu: apt install python3-venv)."
        "$maker" -m venv --clear "$venv"
        finish
    fi
    log="$venv/setup.log"
    : >"$log"

    begin "installing build tools"
    # The comparison needs packaging, which is one of them.
    tools=(pip setuptools wheel ninja psutil packaging)
    if "$python" -c 'import packaging' 2>/dev/null && pins_are_met "${tools[@]}"; then
        finish "already there"
    else
        install "${tools[@]}"
        finish
    fi

    begin "installing torch and torchvision (1-3 minutes, 5 GB)"
    if pins_are_met torch torchvision numpy; then
        finish "already there"
    else
        install torch torchvision numpy
        finish
    fi

    begin "installing MMCV with its compiled ops"
    mmcv_pin="$(grep "^$mmcv==" "$constraints")"
    key="$mmcv_pin-$(check "$python" build-key)"
    cached="$wheels/$key"
    stamp="$venv/mmcv-ops.txt"
    if [[ "$(cat "$stamp" 2>/dev/null)" == "$key" ]] && pins_are_met "$mmcv" && ops_load; then
        finish "already there"
    else
        rm -f "$stamp"
        if [[ "$rebuild" == yes || ! -d "$cached" ]] || ! install_ops; then
            build_ops
            install_ops || fail "the ops just built do not load"
        fi
        echo "$key" >"$stamp"
        finish
    fi

    begin "installing MMDetection, MMPretrain, test tools and mmkd"
    if pins_are_met && check "$python" has-mmkd; then
        finish "already there"
    else
        install --no-build-isolation -e ".[$stack,dev]"
        finish
    fi

    begin "checking the environment"
    advice="'bash tools/setup_env.sh --stack $stack --rebuild' makes a new one."
    check "$python" verify
    finish
    echo "Ready after $SECONDS s: source $venv/bin/activate"
}

# One statement that ends with "exit", because Bash reads a script while it runs, and this file may be
# replaced (by "git pull", for example) during these minutes.
if [[ -n "${MMKD_PYTHON:-}" ]]; then
    use_foreign_environment
    exit 0
else
    make_environment
    exit 0
fi
