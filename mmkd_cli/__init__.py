"""The command ``mmkd``: its subcommands and their arguments.

It is a package of its own, which imports only the standard library: importing ``mmkd`` takes seconds,
because it imports PyTorch and the OpenMMLab packages, and ``--help`` must not wait for that. What a
subcommand does is in the module of the same name in ``mmkd.commands``, which is imported after the arguments
have been parsed.
"""
import argparse
import os
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

COMMANDS = {
    'quickstart': 'quickstart', 'train': 'train', 'test': 'test', 'list': 'list_methods',
    'dry-run': 'dry_run', 'compare': 'compare', 'report': 'report', 'cache': 'cache', 'export': 'export',
    'benchmark': 'benchmark', 'digits': 'digits'}
"""The subcommands, in the order of ``mmkd --help``, and their modules here and in ``mmkd.commands``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``mmkd``.

    Args:
        arguments: The words after ``mmkd``; by default those of the command line.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ['--version']:
        # Read, not imported, because importing mmkd takes seconds.
        print(runpy.run_path(str(Path(__file__).parents[1] / 'mmkd' / 'version.py'))['__version__'])
        return
    parser = argparse.ArgumentParser(
        prog='mmkd', description='Knowledge distillation for MMDetection and MMPretrain.',
        epilog="'mmkd COMMAND --help' describes a command.")
    parser.add_argument('--version', action='store_true', help='print the version')
    commands = parser.add_subparsers(title='commands', dest='command', metavar='COMMAND', required=True)
    for name in COMMANDS:
        description = _module(name).__doc__ or ''
        command = commands.add_parser(
            name, help=re.split('[.:]', description)[0], description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        _module(name).add_arguments(command)
    args = parser.parse_args(arguments)
    _run(args.command, args, arguments[1:])


def parse(command: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of a subcommand.

    Args:
        command: One of :data:`COMMANDS`.
        arguments: The words after its name; by default those of the command line.
    """
    module = _module(command)
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def run(command: str) -> None:
    """Run a subcommand with the arguments of the command line, as the scripts in ``tools/`` do.

    Args:
        command: One of :data:`COMMANDS`.
    """
    _run(command, parse(command), sys.argv[1:])


def _launch(command: str, words: list[str]) -> None:
    """Become the launcher of several processes that run a command, as ``tools/dist_train.sh`` does."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--processes')
    known, others = parser.parse_known_args(words)
    package = Path(__file__).parents[1] / 'mmkd'
    script = f'source {shlex.quote(str(package / ".mim" / "tools" / "common.sh"))}; launch "$@"'
    os.execvpe(
        'bash', ['bash', '-euo', 'pipefail', '-c', script, 'mmkd', known.processes, '-m', 'mmkd',
                 command, '--launcher', 'pytorch', *others], dict(os.environ, MMKD_PYTHON=sys.executable))


def _module(command: str) -> ModuleType:
    return import_module(f'mmkd_cli.{COMMANDS[command]}')


def _run(command: str, args: argparse.Namespace, words: list[str]) -> None:
    if getattr(args, 'processes', None):
        _launch(command, words)
    try:
        from mmkd.cli import run_tool
    except ImportError as error:
        if error.name != 'mmkd':
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    work = import_module(f'mmkd.commands.{COMMANDS[command]}').main
    run_tool(lambda: work(args))
