"""Checkpoints that are written atomically and hold the config of the stock student."""
import os
import os.path as osp
import re
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import BaseStorageBackend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from ...apis.config import student_config
from ...checkpoints import write_atomic
from ...registry import HOOKS

_OUTDATED, _INTERRUPTED = 'outdated_ckpts', 'interrupted_ckpt'
"""Entries of the message hub, and so of checkpoints: files to remove, and the checkpoint of an interrupt."""


class _RemoveLater:
    """A file backend that keeps files until their successors have been written."""

    def __init__(self, backend: BaseStorageBackend) -> None:
        self._backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Mark a file for removal."""
        self.outdated.append(path)

    def remove_outdated(self) -> None:
        """Remove the marked files."""
        while self.outdated:
            path = self.outdated.pop()
            if self._backend.isfile(path):
                self._backend.remove(path)


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's checkpoint hook, with atomic writes and the config of the stock student.

    An old checkpoint is removed only after its successor has been written, also if the process was killed
    between the two and is resumed. With the student's config in the checkpoint, MMDetection's inferencers
    work without mmkd. What a resumed checkpoint says about other files is believed only as far as it names
    checkpoints in the folder of this run.

    Args:
        *args: See MMEngine's ``CheckpointHook``.
        backend_args: The file backend; :class:`~mmkd.checkpoints.AtomicFileBackend` by default. Set it for
            remote storage.
        **kwargs: See MMEngine's ``CheckpointHook``.
    """

    def __init__(self, *args, backend_args: dict | None = None, **kwargs) -> None:
        backend_args = backend_args or dict(backend='mmkd.atomic_file')
        super().__init__(*args, backend_args=backend_args, **kwargs)
        self._student_text: str | None = None
        self.file_backend: Any
        self.last_ckpt: str | None
        self.best_ckpt_path: str | None
        self.saved_iter = -1
        """Number of iterations in the last checkpoint that was written."""

    def before_train(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        if 'keep_ckpt_ids' in info:
            info['keep_ckpt_ids'] = [step for step in info['keep_ckpt_ids'] if isinstance(step, int)]
        super().before_train(runner)
        self.file_backend = _RemoveLater(self.file_backend)
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = self._in_this_run(self.best_ckpt_path)
        for key, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[key] = self._in_this_run(path)
        if is_main_process():  # what was to be removed when the process was killed
            outdated = [self._in_this_run(name) for name in info.get(_OUTDATED, [])]
            self.file_backend.outdated = [path for path in outdated if path]
            self.file_backend.remove_outdated()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._student_text is None:  # formatting a config takes seconds, so it is done once
            self._student_text = student_config(runner.cfg).pretty_text
        # Inferencers read the message hub first; other tools read only `meta`.
        checkpoint['meta']['cfg'] = self._student_text
        checkpoint['message_hub']['runtime_info']['cfg'] = self._student_text

    def save_interrupted(self, runner: Runner) -> None:
        """Save ``iter_N.pth`` after an iteration, which the next regular checkpoint replaces.

        Args:
            runner: The runner, in its ``after_train_iter``.
        """
        self._outdate_interrupted(runner)
        iteration = runner.iter + 1
        name = f'iter_{iteration}.pth'
        runner.message_hub.update_info(_INTERRUPTED, name)
        self._write(runner, name, dict(epoch=runner.epoch, iter=iteration), save_optimizer=True,
                    save_param_scheduler=True)
        self.file_backend.remove_outdated()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        # MMEngine's method removes the old checkpoint first, and its `last_checkpoint` is not atomic.
        self._outdate_interrupted(runner)
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self._outdate(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._write(runner, self.filename_tmpl.format(step), meta, save_optimizer=self.save_optimizer,
                    save_param_scheduler=self.save_param_scheduler)

    def _write(self, runner: Runner, name: str, meta: dict, **parts: bool) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        outdated = [osp.basename(path) for path in self.file_backend.outdated if path != self.last_ckpt]
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.message_hub.update_info(_OUTDATED, outdated)
        runner.save_checkpoint(self.out_dir, name, self.file_client_args, meta=meta, by_epoch=self.by_epoch,
                               backend_args=self.backend_args, **parts, **self.args)
        self.saved_iter = meta['iter']
        if is_main_process():
            write_atomic(os.fsencode(self.last_ckpt), osp.join(runner.work_dir, 'last_checkpoint'))

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(runner)
        self.file_backend.remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if self.save_best:  # a run that only validates has no backend
            self.file_backend.remove_outdated()

    def _outdate(self, name: str) -> None:
        if is_main_process():
            self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))

    def _outdate_interrupted(self, runner: Runner) -> None:
        name = runner.message_hub.runtime_info.pop(_INTERRUPTED, None)
        if self._in_this_run(name):
            self._outdate(name)

    def _in_this_run(self, path: Any) -> str | None:
        """Return the path of a checkpoint of this run that a resumed checkpoint names, or ``None``.

        A folder may have been copied, and then the original must not be changed; and a stranger's checkpoint
        must not choose which files are removed.
        """
        name = osp.basename(path) if isinstance(path, str) else ''
        regular = re.escape(self.filename_tmpl).replace(r'\{\}', r'\d+')
        if not re.fullmatch(rf'iter_\d+\.pth|best_[^/\\]+\.pth|{regular}', name):
            return None
        return self.file_backend.join_path(self.out_dir, name)
