"""The scripts that start several processes: how a run ends, restarts, and is submitted to Slurm."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.tiny import REPO, tiny_config

FAULTS = '''
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmkd.errors import MMKDError

@HOOKS.register_module()
class Fault(Hook):
    """Makes rank 1 fail in the second epoch."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != 3 or os.environ["RANK"] != "1":
            return
        if os.environ["FAULT"] == "mistake":
            raise MMKDError("Rank 1 found a mistake.")
        if os.environ["FAULT"] == "bug":
            raise KeyError("a bug")
        if os.environ["FAULT"] == "kill" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(scope='module')
def config(tmp_path_factory, digits) -> str:
    """The tiny student with data loading workers, for epochs of two iterations in each of two processes."""
    folder = tmp_path_factory.mktemp('launching')
    (folder / 'faults.py').write_text(FAULTS)
    cfg = tiny_config(data=digits)
    cfg.train_cfg.update(max_epochs=2, val_interval=100)
    cfg.train_dataloader.update(batch_size=8, num_workers=1)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.custom_imports = dict(imports=['mmkd', 'faults'], allow_failed_imports=False)
    cfg.custom_hooks = [dict(type='Fault')]
    cfg.dump(folder / 'config.py')
    return str(folder / 'config.py')


def start(script: str, *arguments: object, **variables: str) -> subprocess.Popen:
    return start_process(['bash', f'tools/{script}'], *arguments, **variables)


def start_process(program: list[str], *arguments: object, **variables: str) -> subprocess.Popen:
    env = {**os.environ, 'MMKD_PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'FAULT': '', **variables}
    env['PYTHONPATH'] = os.pathsep.join([str(REPO), os.path.dirname(str(arguments[0]))])
    return subprocess.Popen([*program, *map(str, arguments)], cwd=REPO, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.mark.slow
@pytest.mark.dist
def test_a_signal_to_the_whole_group(config, tmp_path):
    """As a terminal or a cluster sends it: to the launcher, the script and everything that they started."""
    process = start('dist_train.sh', config, 2, '--work-dir', tmp_path, '--cfg-options',
                    'train_cfg.max_epochs=1000', 'default_hooks.checkpoint.interval=1000')
    for line in process.stdout:
        if 'Epoch(train)' in line:
            break
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    (line, ) = [line for line in out.splitlines() if 'Interrupted' in line]
    iteration = re.search(r'SIGTERM after iteration (\d+); saved ', line)[1]
    assert names(tmp_path) == [f'iter_{iteration}.pth']
    assert 'Traceback' not in out + err and 'error' not in err


@pytest.mark.slow
@pytest.mark.dist
def test_a_killed_process_restarts_and_resumes(config, tmp_path):
    process = start('dist_train.sh', config, 2, '--work-dir', tmp_path, MAX_RESTARTS='1', FAULT='kill')
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert 'rank 1 was killed by SIGKILL' in err and 'restarting all processes' in err
    assert 'resumed epoch: 1, iter: 2' in out
    assert names(tmp_path) == ['epoch_2.pth']


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(('fault', 'status'), [('mistake', 2), ('bug', 1)])
def test_a_failure_of_one_rank(config, tmp_path, fault, status):
    """It is told once, by that rank, and a mistake is not tried again."""
    if fault == 'mistake':
        process = start_process([sys.executable, '-m', 'mmkd', 'train'], config, '--processes', 2,
                                '--work-dir', tmp_path, FAULT=fault, MAX_RESTARTS='1')
    else:
        process = start('dist_train.sh', config, 2, '--work-dir', tmp_path, FAULT=fault)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, out + err
    assert err.count('error') == 1
    if fault == 'mistake':
        assert 'error (rank 1 of 2): Rank 1 found a mistake.' in err and 'Traceback' not in err
    else:
        assert 'error (rank 1 of 2):' in err and err.count('Traceback') == 1 and "KeyError: 'a bug'" in err
    assert len(err.splitlines()) < 40


@pytest.mark.slow
@pytest.mark.dist
def test_a_failed_download_ends_all_ranks(config, tmp_path):
    process = start('dist_test.sh', config, 'http://127.0.0.1:9/student.pth', 2, '--work-dir', tmp_path,
                    TORCH_HOME=str(tmp_path))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    (line, ) = [line for line in err.splitlines() if line.startswith('error')]
    assert 'http://127.0.0.1:9/student.pth' in line and 'Traceback' not in err


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Commands of Slurm that write down how they were called, each into a file of its name."""
    for command, status in (('sbatch', 0), ('srun', 75), ('scontrol', 0)):
        script = tmp_path / 'bin' / command
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"{tmp_path}/{command}"\n'
                          f'[[ {command} != srun ]] || sleep "${{SECONDS_TO_TRAIN:-0}}"\nexit {status}\n')
        script.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    monkeypatch.delenv('SLURM_JOB_ID', raising=False)
    return tmp_path


def test_a_job_is_submitted_that_can_be_requeued(slurm):
    process = start('slurm_train.sh', 'part', 'job', 'config.py', slurm / 'a run', '--amp', GPUS='2',
                    SBATCH_ARGS='--time=8:00:00')
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    words = (slurm / 'sbatch').read_text().splitlines()
    for word in ('--requeue', '--signal=USR1@120', '--time=8:00:00', '--partition=part', '--ntasks=2'):
        assert word in words
    # The job runs the same script, which then starts the processes.
    wrapped = words[-1].removeprefix('--wrap=')
    env = dict(os.environ, SLURM_JOB_ID='7', GPUS='2')
    done = subprocess.run(['sh', '-c', wrapped], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75, done.stderr
    words = (slurm / 'srun').read_text().splitlines()
    assert words[-5:] == ['--work-dir', str(slurm / 'a run'), '--launcher', 'slurm', '--amp']
    assert (slurm / 'scontrol').read_text().split() == ['requeue', '7']


def test_a_job_that_was_canceled_is_not_requeued(slurm):
    process = start('slurm_train.sh', 'part', 'job', 'config.py', slurm / 'run', SLURM_JOB_ID='7',
                    SECONDS_TO_TRAIN='1')
    while not (slurm / 'srun').exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # and the processes end with 75
    assert process.wait(timeout=60) == 75
    assert not (slurm / 'scontrol').exists()
