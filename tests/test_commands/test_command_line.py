"""The command ``mmkd`` itself: help without waiting, subcommands, errors."""
import subprocess
import sys
from importlib import import_module

import pytest

import mmkd
from mmkd.commands.list_methods import KINDS
from mmkd.experiments.method_names import TITLES
from mmkd.experiments.training_config import DIGITS
from mmkd_cli import COMMANDS, compare, digits, list_methods, main
from tests.helpers.tiny import REPO

ONLY_PARSING = '''
import sys
import mmkd_cli
try:
    mmkd_cli.main(sys.argv[1:])
finally:
    found = sorted({name.split('.')[0] for name in sys.modules} & {'mmkd', 'torch', 'numpy', 'mmengine'})
    print('imported:', *found)
'''


@pytest.mark.parametrize('words', [['--help'], ['--version'], *([name, '--help'] for name in COMMANDS)])
def test_help_needs_nothing_but_the_standard_library(words):
    """Everything else takes seconds to import."""
    done = subprocess.run([sys.executable, '-S', '-c', ONLY_PARSING, *words], cwd=REPO, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'imported:'
    assert done.stdout.startswith(mmkd.__version__ if words == ['--version'] else 'usage: mmkd')


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert f'\n    {name} ' in printed or f'\n    {name}\n' in printed


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_its_work(name):
    assert callable(import_module(f'mmkd.commands.{COMMANDS[name]}').main)


@pytest.mark.parametrize('words', [[], ['trian'], ['train']])
def test_wrong_words_are_refused(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and 'error:' in capsys.readouterr().err


def test_choices_are_those_of_the_package():
    """They are written twice, because the package takes long to import."""
    assert {*list_methods.TASKS} == {*KINDS}
    assert tuple(TITLES) == compare.METHODS
    assert {*digits.SETS} == {*DIGITS}


def test_a_machine_without_the_openmmlab_packages():
    """It is told how to install them, in one sentence."""
    code = ('import importlib.util\nfind = importlib.util.find_spec\n'
            'importlib.util.find_spec = lambda name: None if name == "mmdet" else find(name)\n'
            'import mmkd_cli\nmmkd_cli.main(["list"])')
    done = subprocess.run([sys.executable, '-c', code], cwd=REPO, text=True, capture_output=True)
    assert done.returncode == 2
    (line, ) = done.stderr.splitlines()
    assert line.startswith('error: mmkd needs OpenMMLab packages that are not installed: mmdet.')
    assert '--no-build-isolation' in line
