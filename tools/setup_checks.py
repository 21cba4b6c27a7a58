"""Checks of an environment for ``tools/setup_env.sh``: its pins, MMCV's compiled ops, its imports.

It runs while the environment is being made, so only the standard library is imported at the top.
"""
import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[1]

# uv does not read pip's configuration: the name of each setting in pip and in uv, and uv's separator.
UV_SETTINGS = {
    'cert': ('SSL_CERT_FILE', ' '),
    'extra-index-url': ('UV_INDEX', ' '),
    'find-links': ('UV_FIND_LINKS', ','),
    'index-url': ('UV_DEFAULT_INDEX', ' '),
    'no-index': ('UV_NO_INDEX', ' '),
}


def unmet_pins(constraints: str, names: list[str]) -> list[str]:
    """List the pinned packages that are missing or have another version.

    Args:
        constraints: Path of a constraints file.
        names: Packages to check; all if the list is empty, except uv, without which pip installs.
    """
    from packaging.requirements import Requirement

    unmet = []
    for line in Path(constraints).read_text().splitlines():
        text = line.split('#')[0].strip()
        if not text:
            continue
        pin = Requirement(text)
        wanted = pin.name in names if names else pin.name != 'uv'
        if not wanted or (pin.marker and not pin.marker.evaluate()):
            continue
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            unmet.append(f'{pin.name} (missing)')
            continue
        if not pin.specifier.contains(installed, prereleases=True):
            unmet.append(f'{pin.name} ({installed})')
    return unmet


def has_mmkd() -> bool:
    """Whether Python finds mmkd in this checkout; call it from another folder, which would count too."""
    for name in ('mmkd', 'mmkd_cli'):
        spec = importlib.util.find_spec(name)
        if not (spec and spec.origin) or Path(spec.origin).resolve() != REPO / name / '__init__.py':
            return False
    return True


def build_key() -> str:
    """Name what a compiled wheel depends on: the build of torch, Python, the machine and the kind of GPU."""
    import torch

    device = 'cpu'
    if torch.cuda.is_available():
        major = (torch.version.cuda or '').split('.')[0]
        nvcc = shutil.which('nvcc')
        release = ''
        if nvcc:
            release = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
        if f'release {major}.' in release:
            device = 'cuda-sm' + ''.join(map(str, torch.cuda.get_device_capability()))
        else:
            print(f'      WARNING: no nvcc {major}.x in PATH, so the ops are built for the CPU only and '
                  'detectors will not run on the GPU', file=sys.stderr)
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    return f'torch-{torch.__version__}-{python}-{platform.machine()}-{device}'


def load_ops() -> None:
    """Load MMCV's compiled file by itself, because MMCV needs packages that are installed later."""
    import torch  # noqa: F401  the ops are linked against it

    mmcv = importlib.util.find_spec('mmcv')
    path, = Path(mmcv.origin).parent.glob('_ext*.so')
    spec = importlib.util.spec_from_file_location('_ext', path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def uv_settings() -> list[str]:
    """List pip's index, links and certificate as settings of uv, unless uv has settings already."""
    listed = subprocess.run([sys.executable, '-m', 'pip', 'config', 'list'],
                            capture_output=True, text=True).stdout.splitlines()
    values = {}
    for section in ('global.', 'install.', ':env:.'):  # the last one wins
        for line in listed:
            name, _, value = line.partition('=')
            if name.startswith(section):
                values[name[len(section):]] = ast.literal_eval(value)
    settings = {uv: separator.join(values[pip].split())
                for pip, (uv, separator) in UV_SETTINGS.items() if values.get(pip)}
    if 'UV_INDEX' in settings:
        settings['UV_INDEX_STRATEGY'] = 'unsafe-best-match'  # all indexes count alike, as for pip
    return [f'{name}={value}' for name, value in settings.items() if name not in os.environ]


def import_or_exit(name: str) -> ModuleType:
    """Import a module; exit with one sentence if that fails."""
    try:
        # On import, OneDL's packages report that an optional package is absent.
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(name)
    except Exception as error:
        sys.exit(f'cannot import {name} with {sys.executable}:\n{type(error).__name__}: {error}')


def check_ops(device: str) -> None:
    """Run two of MMCV's ops on inputs whose results are known; exit with one sentence if one is wrong."""
    import torch
    from mmcv.ops import nms, roi_align

    # Two boxes overlap by 0.9: the one with the higher score stays, and so does the separate box.
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], device=device)
    scores = torch.tensor([.8, .9, .7], device=device)
    # On a ramp whose values are column numbers, bins centered on columns 0.5 and 2.5 have those means.
    ramp = torch.arange(8., device=device).expand(1, 1, 8, 8).contiguous()
    rois = torch.tensor([[0., 0, 0, 4, 4]], device=device)
    try:
        kept = nms(boxes, scores, 0.5)[1]
        pooled = roi_align(ramp, rois, (2, 2), 1.0, 2, 'avg', True)
    except Exception as error:
        sys.exit(f"MMCV's ops fail on {device}: {error}")
    if kept.tolist() != [1, 2]:
        sys.exit(f'mmcv.ops.nms kept boxes {kept.tolist()}, not [1, 2]')
    if not torch.allclose(pooled.flatten(), pooled.new_tensor([.5, 2.5, .5, 2.5])):
        sys.exit(f'mmcv.ops.roi_align returned {pooled.flatten().tolist()}, not [0.5, 2.5, 0.5, 2.5]')


def installed(*names: str) -> str:
    """Name the first of several distributions that is installed, with its version."""
    for name in names:
        try:
            return f'{name} {version(name)}'
        except PackageNotFoundError:
            pass
    return f'{names[0]} ?'


def verify() -> None:
    """Check that everything imports and that MMCV's ops are right; print the versions."""
    torch = import_or_exit('torch')
    torchvision = import_or_exit('torchvision')
    for name in ('mmengine', 'mmcv', 'mmcv.ops', 'mmdet', 'mmdet.apis', 'mmpretrain', 'mmpretrain.apis'):
        import_or_exit(name)
    device = 'cpu'
    if torch.cuda.is_available():
        device = f'cuda:{torch.cuda.current_device()}'
    check_ops(device)
    mmkd = import_or_exit('mmkd')
    if Path(mmkd.__file__).resolve().parent != REPO / 'mmkd':
        sys.exit(f'mmkd comes from {mmkd.__file__}, not from this checkout')

    print(f'      Python {platform.python_version()}, torch {torch.__version__}, '
          f'torchvision {torchvision.__version__}, ops on {device}')
    print('      ' + ', '.join([
        installed('onedl-mmengine', 'mmengine'), installed('onedl-mmcv', 'mmcv'),
        installed('onedl-mmdetection', 'mmdet'), installed('onedl-mmpretrain', 'mmpretrain'),
        installed('mmkd')]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].replace('``', ''))
    commands = parser.add_subparsers(dest='command', required=True)
    pins = commands.add_parser('pins', help='succeed if the pinned packages are installed; print the others')
    pins.add_argument('constraints', help='constraints file')
    pins.add_argument('names', nargs='*', help='packages to check (default: all)')
    commands.add_parser('has-mmkd', help='succeed if mmkd is installed from this checkout')
    commands.add_parser('build-key', help='print what a compiled wheel depends on')
    commands.add_parser('load-ops', help="load MMCV's compiled ops")
    commands.add_parser('uv-settings', help="print pip's configuration as environment variables of uv")
    commands.add_parser('verify', help='check the whole environment')
    args = parser.parse_args()

    if args.command == 'pins':
        unmet = unmet_pins(args.constraints, args.names)
        if unmet:
            print('not as pinned:', ', '.join(unmet))
        return 1 if unmet else 0
    if args.command == 'has-mmkd':
        return 0 if has_mmkd() else 1
    if args.command == 'build-key':
        print(build_key())
    elif args.command == 'load-ops':
        load_ops()
    elif args.command == 'uv-settings':
        for setting in uv_settings():
            print(setting)
    else:
        verify()
    return 0


if __name__ == '__main__':
    sys.exit(main())
