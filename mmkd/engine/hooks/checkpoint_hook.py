"""Checkpoints that are written whole, and are the student's."""
from mmengine.hooks import CheckpointHook as _CheckpointHook

from ...apis.config import student_config
from ...registry import HOOKS


class _RemoveLater:
    """A file backend that keeps files until what replaces them has been written."""

    def __init__(self, backend) -> None:
        self._backend = backend
        self._outdated = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def remove(self, path) -> None:
        self._outdated.append(path)

    def remove_outdated(self) -> None:
        while self._outdated:
            path = self._outdated.pop()
            if self._backend.isfile(path):
                self._backend.remove(path)


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's checkpoint hook, for checkpoints that survive and deploy.

    Files are written whole or not at all, an old checkpoint goes only after its successor stands, and the
    config inside is the stock student's, so that MMDetection's inferencers need no mmkd.

    Args:
        backend_args: By default :class:`~mmkd.checkpoints.AtomicFileBackend`; give another for remote
            storage.
        **kwargs: See MMEngine's ``CheckpointHook``.
    """

    def __init__(self, *args, backend_args: dict | None = None, **kwargs) -> None:
        backend_args = backend_args or dict(backend='mmkd.atomic_file')
        super().__init__(*args, backend_args=backend_args, **kwargs)
        self._student_text = None

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self.file_backend = _RemoveLater(self.file_backend)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._student_text is None:  # formatting a config takes seconds
            self._student_text = student_config(runner.cfg).pretty_text
        # Inferencers look in the message hub first; other tools only know `meta`.
        checkpoint['meta']['cfg'] = self._student_text
        checkpoint['message_hub']['runtime_info']['cfg'] = self._student_text

    def _save_checkpoint(self, runner) -> None:
        super()._save_checkpoint(runner)
        self.file_backend.remove_outdated()

    def _save_best_checkpoint(self, runner, metrics) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if self.save_best:  # there is no backend when a run only validates
            self.file_backend.remove_outdated()
