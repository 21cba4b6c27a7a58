"""Files are written completely or not at all, and a run resumes from the right checkpoint."""
import multiprocessing
import os
import shutil
import signal

import pytest
from mmengine.fileio import get_file_backend

from mmkd.checkpoints import latest_checkpoint, remove_partial_files, write_atomic

OLD, NEW = b'old' * 1000, b'new' * 2000


def partial_files(folder) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith('.mmkd-partial-')]


def test_write_and_overwrite(tmp_path):
    path = tmp_path / 'deep/er/file.pth'
    for content in (OLD, NEW, b''):
        write_atomic(content, path)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ['file.pth']


def test_write_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomic(NEW, 'file.pth')
    assert (tmp_path / 'file.pth').read_bytes() == NEW


@pytest.mark.skipif(os.name != 'posix', reason='permissions of POSIX')
@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_as_the_user_set_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomic(NEW, tmp_path / 'file.pth')
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / 'file.pth').stat().st_mode & 0o777 == mode


class HalfWritten:
    """A file on a disk that is full, or a process that dies, half way through."""

    def __init__(self, file, then):
        self.file, self.then = file, then

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, content):
        self.file.write(content[:len(content) // 2])
        self.file.flush()
        self.then()


def break_at(moment: str, then, set_attribute) -> None:
    """Let ``then`` happen at a moment of :func:`write_atomic`."""
    if moment == 'write':
        open_file = os.fdopen
        set_attribute(os, 'fdopen', lambda *args: HalfWritten(open_file(*args), then))
    else:
        set_attribute(os, moment, lambda *_: then())


def full():
    raise OSError(28, 'No space left on device')


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize('moment', ['write', 'fsync', 'chmod', 'replace'])
@pytest.mark.parametrize(('failure', 'error'), [(full, OSError), (interrupt, KeyboardInterrupt)])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment, failure, error):
    path = tmp_path / 'file.pth'
    path.write_bytes(OLD)
    with monkeypatch.context() as patch, pytest.raises(error):
        break_at(moment, failure, patch.setattr)
        write_atomic(NEW, path)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ['file.pth']


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(path, moment):
    break_at(moment, die, setattr)
    write_atomic(NEW, path)


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')
@pytest.mark.parametrize('moment', ['write', 'fsync', 'replace'])
def test_killed_in_mid_write(tmp_path, moment):
    path = tmp_path / 'file.pth'
    path.write_bytes(OLD)
    child = multiprocessing.get_context('fork').Process(target=write_and_die, args=(path, moment))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    assert len(partial_files(tmp_path)) == 1  # it did die in the midst
    assert latest_checkpoint(tmp_path) is None  # and what it left is not taken for a checkpoint
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == ['file.pth']


def test_remove_partial_files_keeps_all_else(tmp_path):
    work_dir = tmp_path / 'lr[0.1]*'  # a name with the wildcards of glob
    work_dir.mkdir()
    for name in ('epoch_1.pth', '.hidden', 'mmkd-partial-1', '.mmkd-partial-abc'):
        (work_dir / name).write_bytes(OLD)
    remove_partial_files(str(work_dir))
    assert sorted(os.listdir(work_dir)) == ['.hidden', 'epoch_1.pth', 'mmkd-partial-1']


def test_backend_of_mmengine(tmp_path, monkeypatch):
    backend = get_file_backend(backend_args=dict(backend='mmkd.atomic_file'))
    path = str(tmp_path / 'run/epoch_1.pth')
    backend.put(OLD, path)
    assert backend.get(path) == OLD
    with monkeypatch.context() as patch, pytest.raises(OSError):
        break_at('write', full, patch.setattr)
        backend.put(NEW, path)
    assert backend.get(path) == OLD


# The checkpoint to resume from


@pytest.fixture
def work_dir(tmp_path):
    """A run with two checkpoints, the newer of which the pointer names."""
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in ('epoch_9.pth', 'epoch_10.pth'):
        (folder / name).write_bytes(OLD)
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_10.pth'))
    return folder


def test_pointer_is_followed(work_dir):
    (work_dir / 'last_checkpoint').write_text(f'{work_dir / "epoch_9.pth"}\n')
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_9.pth')


def test_pointer_to_a_name_of_its_own(work_dir):
    (work_dir / 'final.pth').write_bytes(OLD)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'final.pth'))
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'final.pth')


def test_moved_folder(work_dir, tmp_path):
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_9.pth'))
    moved = tmp_path / 'elsewhere/run'
    shutil.move(work_dir, moved)
    assert latest_checkpoint(str(moved)) == str(moved / 'epoch_9.pth')


def test_copied_folder(work_dir, tmp_path):
    shutil.copytree(work_dir, tmp_path / 'copy')
    assert latest_checkpoint(str(tmp_path / 'copy')) == str(tmp_path / 'copy/epoch_10.pth')


@pytest.mark.parametrize('content', ['', '\n', None])
def test_no_pointer_or_an_empty_one(work_dir, content):
    if content is None:
        (work_dir / 'last_checkpoint').unlink()
    else:
        (work_dir / 'last_checkpoint').write_text(content)
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_10.pth')  # ten is more than nine


def test_pointer_to_a_deleted_file(work_dir):
    (work_dir / 'epoch_10.pth').unlink()
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_9.pth')


def test_iterations(tmp_path):
    for name in ('iter_500.pth', 'iter_12000.pth', 'iter_2000.pth'):
        (tmp_path / name).write_bytes(OLD)
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / 'iter_12000.pth')


def test_epochs_and_iterations(work_dir):
    """An interrupted run has both; numbers of epochs and of iterations cannot be compared."""
    (work_dir / 'last_checkpoint').unlink()
    (work_dir / 'iter_700.pth').write_bytes(OLD)
    os.utime(work_dir / 'iter_700.pth', (1, 1))
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_10.pth')
    os.utime(work_dir / 'epoch_10.pth', (0, 0))
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'iter_700.pth')


def test_none(tmp_path):
    assert latest_checkpoint(str(tmp_path / 'not there')) is None
    for name in ('best_coco_bbox_mAP_epoch_7.pth', 'epoch_x.pth', 'epoch_3.pth.part', 'notes.txt'):
        (tmp_path / name).write_bytes(OLD)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    assert latest_checkpoint(str(tmp_path)) is None
