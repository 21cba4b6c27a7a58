"""Checkpoints that are written atomically and hold the config of the stock student."""
from typing import Any

from mmengine.fileio import BaseStorageBackend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from ...apis.config import student_config
from ...registry import HOOKS


class _RemoveLater:
    """A file backend that keeps files until their successors have been written."""

    def __init__(self, backend: BaseStorageBackend) -> None:
        self._backend = backend
        self._outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Mark a file for removal."""
        self._outdated.append(path)

    def remove_outdated(self) -> None:
        """Remove the marked files."""
        while self._outdated:
            path = self._outdated.pop()
            if self._backend.isfile(path):
                self._backend.remove(path)


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's checkpoint hook, with atomic writes and the config of the stock student.

    An old checkpoint is removed only after its successor has been written. With the student's config in the
    checkpoint, MMDetection's inferencers work without mmkd.

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

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _RemoveLater(self.file_backend)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._student_text is None:  # formatting a config takes seconds, so it is done once
            self._student_text = student_config(runner.cfg).pretty_text
        # Inferencers read the message hub first; other tools read only `meta`.
        checkpoint['meta']['cfg'] = self._student_text
        checkpoint['message_hub']['runtime_info']['cfg'] = self._student_text

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(runner)
        self.file_backend.remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if self.save_best:  # a run that only validates has no backend
            self.file_backend.remove_outdated()
