"""Files that are written completely or not at all, and the checkpoint to resume from."""
import os
import re
import tempfile
from glob import escape, glob
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

_PARTIAL = '.mmkd-partial-'


def write_atomic(content: bytes, path: str | Path) -> None:
    """Write ``content`` to ``path`` so that readers see either the old file or the new file, never a part.

    Args:
        content: The bytes of the file.
        path: The file; its folder is made if it does not exist.
    """
    folder = os.path.dirname(path) or '.'
    os.makedirs(folder, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=_PARTIAL)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


def remove_partial_files(folder: str) -> None:
    """Delete the files that an interrupted :func:`write_atomic` has left in ``folder``."""
    for path in glob(os.path.join(escape(folder), f'{_PARTIAL}*')):
        os.remove(path)


class AtomicFileBackend(LocalBackend):
    """MMEngine's local file backend, with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomic(obj, filepath)


register_backend('mmkd.atomic_file', AtomicFileBackend, force=True)


def latest_checkpoint(work_dir: str) -> str | None:
    """Return the checkpoint from which training in ``work_dir`` resumes, or ``None``.

    This is the target of MMEngine's ``last_checkpoint`` file if it exists (also after the folder was moved),
    otherwise the checkpoint with the highest number. Where some are numbered by epochs and some by
    iterations, it is the newer one of the two that have the highest numbers.
    """
    pointer = os.path.join(work_dir, 'last_checkpoint')
    if os.path.isfile(pointer):
        with open(pointer) as file:
            target = file.read().strip()
        # This folder comes first: after copying a folder, the pointer still names the original.
        for candidate in (os.path.join(work_dir, os.path.basename(target)), target):
            if target and os.path.isfile(candidate):
                return candidate
    numbered: dict[str, list[tuple[int, str]]] = {}
    for path in glob(os.path.join(escape(work_dir), '*.pth')):
        match = re.fullmatch(r'(epoch|iter)_(\d+)\.pth', os.path.basename(path))
        if match:
            numbered.setdefault(match[1], []).append((int(match[2]), path))
    highest = [max(paths)[1] for paths in numbered.values()]
    return max(highest, key=os.path.getmtime, default=None)
