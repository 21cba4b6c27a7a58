#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
Usage: bash tools/setup_env.sh [--stack onedl|upstream] [--rebuild]

Makes an environment with PyTorch, MMCV's compiled ops, MMDetection, MMPretrain and mmkd, and
checks that it works. What is there already is kept, so it can be run again at any time.

  --stack onedl       the maintained OneDL packages, torch 2.11, in .venv  (default)
  --stack upstream    the last OpenMMLab releases, torch 2.1, in .venv-upstream
  --rebuild           start from an empty environment and compile MMCV's ops again

  PYTHON         the Python to make the environment with  (python3; 3.10 to 3.12, upstream 3.11)
  MMKD_CACHE     where compiled wheels are kept           (~/.cache/mmkd)
  MMKD_PYTHON    an interpreter that has everything already: only mmkd is installed into it
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
constraints="$ROOT/requirements/constraints-$stack.txt"
wheels="${MMKD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmkd}/wheels"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
cd "$ROOT"

# ---------------------------------------------------------------------------- telling and failing

step=0
steps=7
title=''
advice=''
log=''
logged=no
stopped=no
child=''
scratch=''

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

# Runs a command with its output in the log, and says every 30 s that it is still at it.
run() {
    local next=30 since=$SECONDS
    logged=yes
    printf '\n== %s\n' "$*" >>"$log"
    # Its own process group: stopping this script must stop the compilers too.
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

# ------------------------------------------------------------------------------------ the checks

# Where Python finds mmkd, asked from elsewhere so that this folder does not count.
mmkd_is_installed() {  # PYTHON
    (cd / && "$1" - "$ROOT") <<'PY'
import importlib.util
import sys
from pathlib import Path

spec = importlib.util.find_spec('mmkd')
here = Path(sys.argv[1], 'mmkd', '__init__.py').resolve()
sys.exit(not (spec and spec.origin and Path(spec.origin).resolve() == here))
PY
}

# Prints the packages of the constraints file that are missing or have another version.
unmet_pins() {  # PYTHON [NAME...]
    "$1" - "$constraints" "${@:2}" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

wanted = sys.argv[2:]
for line in open(sys.argv[1]):
    line = line.split('#')[0].strip()
    if not line:
        continue
    pin = Requirement(line)
    if (wanted and pin.name not in wanted) or (pin.marker and not pin.marker.evaluate()):
        continue
    try:
        found = version(pin.name)
    except PackageNotFoundError:
        print(f'{pin.name} (missing)')
        continue
    if not pin.specifier.contains(found, prereleases=True):
        print(f'{pin.name} ({found})')
PY
}

# Prints what a compiled wheel depends on: torch's build, Python, machine, and the GPU's kind.
build_key() {  # PYTHON
    "$1" - "$(command -v nvcc || true)" <<'PY'
import platform
import subprocess
import sys

import torch

nvcc, device = sys.argv[1], 'cpu'
if torch.cuda.is_available():
    release = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout if nvcc else ''
    major = (torch.version.cuda or '').split('.')[0]
    if f'release {major}.' in release:
        device = 'cuda-sm' + ''.join(map(str, torch.cuda.get_device_capability()))
    else:
        print(f'      WARNING: no nvcc {major}.x in PATH, so the ops are built for the CPU only and '
              'detectors will not run on the GPU', file=sys.stderr)
tag = f'cp{sys.version_info.major}{sys.version_info.minor}'
print(f'torch-{torch.__version__}-{tag}-{platform.machine()}-{device}')
PY
}

# Loads the compiled file alone: MMCV itself needs packages that come later.
ops_load() {
    logged=yes
    "$python" - >>"$log" 2>&1 <<'PY'
import importlib.util
from pathlib import Path

import torch  # noqa: F401  the ops are linked against it

mmcv = importlib.util.find_spec('mmcv')
path, = Path(mmcv.origin).parent.glob('_ext*.so')
spec = importlib.util.spec_from_file_location('_ext', path)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
PY
}

install_ops() {
    run "${pip[@]}" --force-reinstall --no-deps "$cached"/*.whl && ops_load
}

build_ops() {
    local cuda=("FORCE_CUDA=1")
    # MMCV builds for any GPU that torch sees, whether or not there is an nvcc for it.
    [[ "$key" == *-cuda-* ]] || cuda=("FORCE_CUDA=0" "CUDA_VISIBLE_DEVICES=")
    echo "      compiling (7-9 minutes on 2 cores)"
    advice="The log has the compiler's own words. If it was killed, memory ran out: set MAX_JOBS=1."
    # Whole or not at all: the wheel is moved to its place when it is finished.
    mkdir -p "$wheels"
    scratch="$(mktemp -d "$wheels/unfinished.XXXXXX")"
    # Always from source, and past pip's own cache, which does not know which torch a wheel was
    # built for. -g0: with debug information it is 15 times as large.
    run env MMCV_WITH_OPS=1 "${cuda[@]}" MAX_JOBS="${MAX_JOBS:-$(count_cores)}" CFLAGS=-g0 \
        "$python" -m pip wheel --no-cache-dir --no-build-isolation --no-deps \
        --no-binary "$mmcv" --wheel-dir "$scratch" "$mmcv_pin"
    chmod 755 "$scratch"
    rm -rf "$cached"
    mv "$scratch" "$cached"
    scratch=''
    advice=''
}

verify() {  # PYTHON
    (cd / && "$1" -W ignore - "$ROOT") <<'PY'
import contextlib
import importlib
import io
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def need(name):
    try:
        # OneDL's packages tell on import that one which is not needed is absent.
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(name)
    except Exception as error:
        sys.exit(f'cannot import {name} with {sys.executable}:\n{type(error).__name__}: {error}')


torch, torchvision = need('torch'), need('torchvision')
for name in ('mmengine', 'mmcv', 'mmcv.ops', 'mmdet', 'mmdet.apis', 'mmpretrain', 'mmpretrain.apis'):
    need(name)
from mmcv.ops import nms, roi_align

device = 'cpu'
if torch.cuda.is_available():
    device = f'cuda:{torch.cuda.current_device()}'

# Of two boxes that overlap by 0.9 the better one stays, and so does the one that stands apart.
boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], device=device)
try:
    kept = nms(boxes, torch.tensor([.8, .9, .7], device=device), 0.5)[1]
    # On a ramp that counts columns, bins centerd on columns 0.5 and 2.5 hold those numbers.
    ramp = torch.arange(8., device=device).expand(1, 1, 8, 8).contiguous()
    rois = torch.tensor([[0., 0, 0, 4, 4]], device=device)
    pooled = roi_align(ramp, rois, (2, 2), 1.0, 2, 'avg', True)
except Exception as error:
    sys.exit(f"MMCV's ops fail on {device}: {error}")
if kept.tolist() != [1, 2]:
    sys.exit(f'mmcv.ops.nms kept boxes {kept.tolist()}, not [1, 2]')
if not torch.allclose(pooled.flatten(), pooled.new_tensor([.5, 2.5, .5, 2.5])):
    sys.exit(f'mmcv.ops.roi_align gave {pooled.flatten().tolist()}, not [0.5, 2.5, 0.5, 2.5]')

mmkd = need('mmkd')
if Path(mmkd.__file__).resolve().parent != Path(sys.argv[1], 'mmkd').resolve():
    sys.exit(f'mmkd comes from {mmkd.__file__}, not from this checkout')


def show(*names):
    for name in names:
        try:
            return f'{name} {version(name)}'
        except PackageNotFoundError:
            pass
    return f'{names[0]} ?'


print('      Python {}, torch {}, torchvision {}, ops on {}'.format(
    sys.version.split()[0], torch.__version__, torchvision.__version__, device))
print('      ' + ', '.join([
    show('onedl-mmengine', 'mmengine'), show('onedl-mmcv', 'mmcv'),
    show('onedl-mmdetection', 'mmdet'), show('onedl-mmpretrain', 'mmpretrain'), show('mmkd')]))
PY
}

# --------------------------------------------------------------------------------------- the work

use_foreign_environment() {
    steps=2
    begin "installing mmkd for $MMKD_PYTHON"
    advice="MMKD_PYTHON must name a Python with pip, setuptools and wheel."
    "$MMKD_PYTHON" -c '' || fail "$MMKD_PYTHON does not run"
    if mmkd_is_installed "$MMKD_PYTHON"; then
        finish "already there"
    else
        said="$("$MMKD_PYTHON" -m pip install --no-deps --no-build-isolation -e . 2>&1)" ||
            fail "$said"
        finish
    fi
    begin "checking the environment"
    advice="Install what is missing there, or unset MMKD_PYTHON to have an environment made."
    verify "$MMKD_PYTHON"
    finish
}

make_environment() {
    # Two runs on one environment would spoil it. The lock goes when the last process using it ends.
    if command -v flock >/dev/null; then
        exec 9>"$venv.lock"
        if ! flock --nonblock 9; then
            echo "Another run is at work on $venv; waiting for it."
            flock 9
        fi
    fi

    [[ "$rebuild" == no ]] || rm -rf "$venv"
    python="$venv/bin/python"

    begin "checking Python and the compiler"
    maker="$python"
    "$maker" -c 'import pip' 2>/dev/null || maker="${PYTHON:-python3}"
    advice="Name one with PYTHON=/path/to/python (--rebuild replaces an environment made with another)."
    "$maker" - "$newest" <<'PY' || fail "$maker cannot be used"
import sys

if not 10 <= sys.version_info.minor <= int(sys.argv[1]) or sys.version_info.major != 3:
    sys.exit(f'      Python 3.10 to 3.{sys.argv[1]} is needed, this is {sys.version.split()[0]}')
PY
    if [[ ! -f "$venv/mmcv-ops.txt" ]]; then
        # Told now rather than after the downloads.
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
    pip=("$python" -m pip install -c "$constraints")

    begin "installing build tools"
    # The first look needs packaging, which is one of them.
    if "$python" -c 'import packaging' 2>/dev/null &&
        [[ -z "$(unmet_pins "$python" pip setuptools wheel ninja psutil packaging)" ]]; then
        finish "already there"
    else
        run "${pip[@]}" pip setuptools wheel ninja psutil packaging
        finish
    fi

    begin "installing torch and torchvision (1-3 minutes, 5 GB)"
    if [[ -z "$(unmet_pins "$python" torch torchvision numpy)" ]]; then
        finish "already there"
    else
        run "${pip[@]}" torch torchvision numpy
        finish
    fi

    begin "installing MMCV with its compiled ops"
    mmcv_pin="$(grep "^$mmcv==" "$constraints")"
    key="$mmcv_pin-$(build_key "$python")"
    cached="$wheels/$key"
    stamp="$venv/mmcv-ops.txt"
    if [[ "$(cat "$stamp" 2>/dev/null)" == "$key" && -z "$(unmet_pins "$python" "$mmcv")" ]] && ops_load; then
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
    if [[ -z "$(unmet_pins "$python")" ]] && mmkd_is_installed "$python"; then
        finish "already there"
    else
        run "${pip[@]}" --no-build-isolation -e ".[$stack,dev]"
        finish
    fi

    begin "checking the environment"
    advice="'bash tools/setup_env.sh --stack $stack --rebuild' makes it anew."
    verify "$python"
    finish
    echo "Ready after $SECONDS s: source $venv/bin/activate"
}

# One statement with its own exit: Bash reads a script while it runs, and this file may be replaced
# (by git pull, say) during the minutes that takes.
if [[ -n "${MMKD_PYTHON:-}" ]]; then
    use_foreign_environment
    exit 0
else
    make_environment
    exit 0
fi
