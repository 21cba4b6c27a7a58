"""Signals end a training in good order, and what a kill leaves behind is cleaned up."""
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmkd.apis import prepare_config
from mmkd.checkpoints import latest_checkpoint, load_checkpoint
from mmkd.engine.hooks import HangHook, PreemptionHook
from mmkd.engine.hooks.checkpoint_hook import _RemoveLater
from mmkd.engine.hooks.preemption_hook import SIGNALS
from tests.helpers.tiny import forget_runs, tiny_config


@HOOKS.register_module()
class Signaller(Hook):
    """Sends a signal to its process before an iteration, or in the validation after it."""

    def __init__(self, number: int, iteration: int, where: str) -> None:
        self.number, self.iteration, self.where = number, iteration, where

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.where == 'training' and runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.where == 'validation' and runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)


def train(digits, work_dir, resume=False, epochs=2, keep=-1, **signaller) -> None:
    """Train the tiny student for epochs of four iterations."""
    forget_runs()
    cfg = tiny_config(data=digits)
    cfg.work_dir = str(work_dir)
    cfg.train_cfg.update(max_epochs=epochs, val_interval=1)
    cfg.train_dataloader.update(batch_size=8)
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=keep, save_best='auto' if keep == 1 else None)
    if signaller:
        cfg.custom_hooks = [dict(type='Signaller', **signaller)]
    if resume:
        cfg.resume, cfg.load_from = True, latest_checkpoint(cfg.work_dir)
    Runner.from_cfg(prepare_config(cfg)).train()


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.mark.slow
def test_saved_after_the_iteration_and_removed_later(digits, tmp_path, capsys):
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as end:
        train(digits, tmp_path, number=signal.SIGUSR1, iteration=1, where='training')
    assert end.value.code == 75
    assert checkpoints(tmp_path) == ['iter_2.pth']
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / 'iter_2.pth')
    saved = load_checkpoint(str(tmp_path / 'iter_2.pth'))
    assert (saved['meta']['epoch'], saved['meta']['iter']) == (0, 2)
    assert saved['optimizer']['state'] and saved['param_schedulers']
    lines = [line for line in capsys.readouterr().out.splitlines() if 'Interrupted' in line]
    assert len(lines) == 1 and 'SIGUSR1 after iteration 2; saved' in lines[0] and '--resume' in lines[0]

    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)  # an interrupted process keeps them to its end
    train(digits, tmp_path, resume=True)
    assert checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.slow
def test_the_validation_is_not_finished_if_all_is_saved(digits, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        train(digits, tmp_path, number=signal.SIGTERM, iteration=4, where='validation')
    assert end.value.code == 75
    assert checkpoints(tmp_path) == ['epoch_1.pth']
    output = capsys.readouterr().out
    assert 'during the validation after iteration 4' in output and 'Epoch(val)' not in output


def test_a_second_ctrl_c_ends_at_once():
    hook = PreemptionHook()
    hook._note(signal.SIGTERM, None)
    hook._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        hook._note(signal.SIGINT, None)


@pytest.mark.slow
def test_killed_before_the_old_checkpoint_was_removed(digits, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(backend):
        if backend.outdated:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_RemoveLater, 'remove_outdated', die)
        train(digits, tmp_path, keep=1)
    assert checkpoints(tmp_path)[-2:] == ['epoch_1.pth', 'epoch_2.pth']
    # A file that names others must not choose which are removed.
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    info = checkpoint['message_hub']['runtime_info']
    precious = tmp_path.parent / 'best_precious.pth'
    precious.write_text('precious')
    info['outdated_ckpts'] += [str(precious), '../best_precious.pth', 'notes.txt', 7]
    info['keep_ckpt_ids'] = [f'{tmp_path.parent}/best_precious', 2]
    info['best_ckpt'] = str(precious)
    info['best_score'] = -1.0
    torch.save(checkpoint, tmp_path / 'epoch_2.pth')
    (tmp_path / 'notes.txt').write_text('precious')

    train(digits, tmp_path, keep=1, resume=True, epochs=3)
    assert [name for name in checkpoints(tmp_path) if name.startswith('epoch')] == ['epoch_3.pth']
    assert precious.exists() and (tmp_path / 'notes.txt').exists()


def test_a_hanging_process_says_where_it_is(capsys):
    def stuck_here():
        deadline = time.monotonic() + 10
        while 'stuck_here' not in (text := capsys.readouterr().err):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return text

    hook, runner = HangHook(minutes=0.005), SimpleNamespace(iter=6)
    hook.before_run(runner)
    hook.before_train_iter(runner, 0)
    text = stuck_here()
    hook.after_run(runner)
    assert 'No progress for 0.005 minutes: iteration 7, training step.' in text
