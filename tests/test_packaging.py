"""What is installed: configs by name, the tools where MIM looks for them, sdist and wheel."""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.utils import get_installed_path

from mmkd.config_files import SHIPPED, read_config
from mmkd.errors import MMKDError
from tests.helpers.shipped import CONFIGS, REPO

INSTALLED = pytest.mark.skipif(not Path(get_installed_path('mmkd')).exists(),
                               reason='upstream MMEngine does not find editable installs')
# MMEngine wants a folder; those without one are for checkouts.
NAMES = [f'mmkd::{path.relative_to("configs").as_posix()}' for path in CONFIGS if len(path.parts) > 2]
SOURCES = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml', 'configs',
           'tools', 'mmkd', 'mmkd_cli')

ALL_CONFIGS = '''
from pathlib import Path
import mmkd
from mmengine.config import Config
from mmengine.config.utils import _get_external_cfg_base_path
from mmkd.config_files import SHIPPED, read_config
assert Path(mmkd.__file__).is_relative_to(__ENV__), mmkd.__file__
number = 0
for path in SHIPPED.rglob('*.py'):
    name = f'mmkd::{path.relative_to(SHIPPED).as_posix()}'
    cfg = read_config(name)
    number += 1
    teachers = [cfg.get('teacher'), (cfg.get('model') or {}).get('teacher')]
    for teacher in teachers:
        if teacher and str(teacher.get('config')).startswith('mmkd::'):
            read_config(teacher.config)
based = Config.fromfile('based.py')
assert based.model.methods.kd.type == 'mmkd.KD'
print(number, 'configs')
'''


@INSTALLED
def test_a_config_by_its_name():
    """As MMEngine finds it, and as mmkd does."""
    name = 'mmkd::examples/quickstart/kd.py'
    expected = Config.fromfile(REPO / 'configs/examples/quickstart/kd.py').to_dict()
    assert read_config(name).to_dict() == get_config(name).to_dict() == expected


@INSTALLED
def test_a_config_with_a_base_by_its_name(tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'mmkd::examples/quickstart/kd.py'\nrandomness = dict(seed=7)")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.model.methods.kd.type == 'mmkd.KD' and cfg.randomness.seed == 7


def test_mmengine_takes_the_names_of_all_configs():
    """It wants a folder and a file, and looks for the file inside the package."""
    assert len(NAMES) > 120
    for name in NAMES:
        assert re.match(r'\w*::\w*/\w*', name), name
        assert (SHIPPED / name.removeprefix('mmkd::')).is_file()


def test_teachers_are_not_named_by_paths():
    """A path would only be found from inside a checkout."""
    for path in (REPO / 'configs').rglob('*.py'):
        assert not re.search(r"config='(configs|\.)", path.read_text()), path


@pytest.mark.parametrize('name', ['mmkd::examples/quickstart/kdd.py', 'mmkd::../setup.py', 'mmkd::examples'])
def test_a_name_that_does_not_exist(name):
    with pytest.raises(MMKDError, match='mmkd has no config') as error:
        read_config(name)
    if 'kdd' in name:
        assert "'examples/quickstart/kd.py'" in str(error.value)


def test_mim_finds_the_tools():
    mim = REPO / 'mmkd/.mim'
    assert (mim / 'tools/train.py').resolve() == REPO / 'tools/train.py'
    assert (mim / 'model-index.yml').resolve() == REPO / 'model-index.yml'
    # MIM passes --gpus on to scripts that have it in their help.
    assert '--gpus' not in (REPO / 'mmkd_cli/train.py').read_text()


def without_python_variables() -> dict:
    return {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> Path:
    """An environment with a wheel that was built from a sdist, beside the packages of the present one."""
    root = tmp_path_factory.mktemp('packaging')
    source, env = root / 'source', root / 'env'
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, source / name, **(dict(symlinks=True) if copy is shutil.copytree else {}))
    # With a PYTHONPATH to a checkout, pip would find mmkd installed already.
    quiet = dict(check=True, capture_output=True, text=True, env=without_python_variables())
    subprocess.run([sys.executable, 'setup.py', '-q', 'sdist', '-d', root], cwd=source, **quiet)
    pip = [sys.executable, '-m', 'pip']
    offline = ['--no-deps', '--no-build-isolation', '--no-index', '--disable-pip-version-check']
    (sdist, ) = root.glob('*.tar.gz')
    subprocess.run([*pip, 'wheel', '-q', *offline, '-w', root, sdist], **quiet)
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', env], **quiet)
    (wheel, ) = root.glob('*.whl')
    subprocess.run([*pip, '--python', env / 'bin/python', 'install', '-q', '--no-deps', '--no-index', wheel],
                   **quiet)
    site = sysconfig.get_path('purelib', vars=dict(base=str(env), platbase=str(env)))
    # The path alone: what is installed there as editable stays out.
    (Path(site) / 'packages.pth').write_text(sysconfig.get_path('purelib'))
    return env


@pytest.fixture
def inside(environment, tmp_path):
    """Function that runs a program of the environment in an empty folder, without the checkout."""
    def run(program: str, *words: object) -> str:
        done = subprocess.run([environment / 'bin' / program, *map(str, words)], cwd=tmp_path, text=True,
                              capture_output=True, env={**without_python_variables(), 'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_wheel_loads_all_configs(inside, environment, tmp_path):
    (tmp_path / 'based.py').write_text("_base_ = 'mmkd::examples/quickstart/kd.py'")
    printed = inside('python', '-c', ALL_CONFIGS.replace('__ENV__', repr(str(environment))))
    assert printed.splitlines()[-1] == f'{len([*(REPO / "configs").rglob("*.py")])} configs'


@pytest.mark.slow
def test_wheel_trains_in_an_empty_folder(inside, tmp_path):
    inside('mmkd', 'digits', 'digits_det')
    inside('mmkd', 'train', 'mmkd::examples/quickstart/shake.py', '--cfg-options', 'train_cfg.max_epochs=1',
           'train_dataloader.dataset.indices=16', 'train_dataloader.num_workers=0',
           'train_dataloader.persistent_workers=False', 'val_cfg=None', 'val_dataloader=None',
           'val_evaluator=None', 'model.teacher.checkpoint=random', 'default_hooks.logger.interval=1')
    (log, ) = tmp_path.glob('work_dirs/shake/*/vis_data/scalars.json')
    assert len(log.read_text().splitlines()) == 2
    printed = inside('mmkd', 'export', 'work_dirs/shake/epoch_1.pth', 'student.pth')
    assert 'student.pth' in printed and (tmp_path / 'student.pth').is_file()


@pytest.mark.slow
def test_wheel_has_what_it_should(environment):
    (package, ) = environment.glob('lib/python*/site-packages/mmkd')
    assert (package / 'py.typed').is_file()
    tools = {path.name for path in (package / '.mim/tools').rglob('*')}
    assert {'train.py', 'test.py', 'dist_train.sh', 'common.sh', 'launch.py'} <= tools
    assert not tools & {'setup_env.sh', 'setup_checks.py', 'run_tests.sh', 'quickstart.sh'}
    (metadata, ) = environment.glob('lib/python*/site-packages/mmkd-*/METADATA')
    text = metadata.read_text()
    for field in ('Summary: ', 'License: Apache-2.0', 'Requires-Python: >=3.10', 'Keywords: ',
                  'Classifier: Typing :: Typed', 'Provides-Extra: onedl', 'text/markdown'):
        assert field in text
