"""The two formats of checkpoint files: archives (torch 1.6 and later) and the older sequence of pickles."""
import os
import stat
import zipfile
from io import BytesIO
from typing import Any, BinaryIO

import torch

from ..errors import one_line
from .known_types import CONSTRUCTORS, STATES, VALUES, Storage, StorageType
from .pickle_reader import BrokenError, PickleReader

_CHUNK = 2**24
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
_PROTOCOL = 1001
_TENSORS_PER_FILE = 8, 2**26
"""Tensors may share storages: together they may take this factor times the file, plus this many bytes."""


class FormatError(ValueError):
    """A file is not of a format that holds weights; the message says which it is."""


def open_regular_file(path: str) -> BinaryIO:
    """Open a file for reading, but no device or pipe, which could block.

    Raises:
        OSError: If there is no regular file, or it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError('it is not a regular file')
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 'rb')
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError('it is not a regular file')
    return file


def check_format(file: BinaryIO) -> None:
    """Check that a file is no TorchScript program, tar archive or web page; its position is the beginning.

    Raises:
        FormatError: If it is.
        BrokenError: If it is an archive that cannot be read.
    """
    start = file.read(512)
    file.seek(0)
    if start.lstrip()[:1] == b'<':
        raise FormatError('is a web page, not a PyTorch checkpoint')
    if start[257:262] == b'ustar':
        raise FormatError('is a tar archive, which PyTorch has not written since version 0.1.10')
    if is_archive(file):
        names = _open_archive(file).namelist()
        if any(name.rpartition('/')[2] == 'constants.pkl' for name in names):
            raise FormatError('is a TorchScript program, not a file of weights')
    file.seek(0)


def is_archive(file: BinaryIO) -> bool:
    """Whether torch takes a file for an archive; its position is the beginning."""
    start = file.read(4)
    file.seek(0)
    return start == b'PK\x03\x04'


def check_beginning(file: BinaryIO) -> None:
    """Check that a file begins as a checkpoint and, if it is an archive, ends as one.

    Raises:
        FormatError: If it is a program or a tar archive.
        BrokenError: If it is anything else, such as a web page.
    """
    check_format(file)
    if not is_archive(file):
        _Sequence(file).check_beginning()


def read_file(file: BinaryIO) -> Any:
    """Read a checkpoint file as data.

    Args:
        file: A regular file, open at its beginning, whose format was checked.

    Returns:
        The content, all tensors on the CPU.

    Raises:
        RefusedError: If the file refers to something outside the allowlist.
        BrokenError: If it is damaged, or would take more memory or time than its size justifies.
    """
    return _Archive(file).read() if is_archive(file) else _Sequence(file).read()


def _reader(file: BinaryIO, size: int, file_size: int, find_storage: Any) -> PickleReader:
    factor, constant = _TENSORS_PER_FILE
    return PickleReader(file, size, factor * file_size + constant, VALUES, CONSTRUCTORS, STATES, find_storage)


def _checked_id(saved_id: Any, length: int) -> tuple[StorageType, str, int]:
    """Return the type, the name and the number of elements of a storage that a pickle refers to."""
    if type(saved_id) is not tuple or len(saved_id) != length:
        raise BrokenError('it refers to an unknown kind of storage')
    kind, storage_type, key, _, size = saved_id[:5]
    if kind != 'storage' or type(storage_type) is not StorageType or type(key) is not str or (
            type(size) is not int or size < 0):
        raise BrokenError('it refers to an unknown kind of storage')
    return storage_type, key, size


def _open_archive(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise BrokenError(f'its archive is damaged, {one_line(error)[:200]}') from None


class _Archive:
    """A ZIP archive of ``data.pkl`` and one uncompressed record for each storage."""

    def __init__(self, file: BinaryIO) -> None:
        self._size = os.fstat(file.fileno()).st_size
        self._archive = _open_archive(file)
        self._records = {record.filename: record for record in self._archive.infolist()}
        records = self._records.values()
        if len(self._records) < len(self._archive.infolist()):
            raise BrokenError('its archive has two records of the same name')
        if any(record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size
               for record in records) or sum(record.file_size for record in records) > self._size:
            raise BrokenError('the records of its archive are larger than the file')
        # torch.serialization.set_crc32_options(False) writes 0 for all checksums.
        self._has_checksums = any(record.CRC for record in records)
        self._storages: dict[str, torch.Tensor] = {}

    def read(self) -> Any:
        pickles = [name for name in self._records if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise BrokenError('its archive has no data.pkl')
        self._folder = pickles[0].removesuffix('data.pkl')
        order = f'{self._folder}byteorder'
        if order in self._records and self._read_record(order).numpy().tobytes() != b'little':
            raise BrokenError('it was written by a computer of a different byte order')
        content = self._read_record(pickles[0]).numpy().tobytes()
        return _reader(BytesIO(content), len(content), self._size, self._find_storage).read()

    def _find_storage(self, saved_id: Any) -> Storage:
        storage_type, key, size = _checked_id(saved_id, 5)
        name = f'{self._folder}data/{key}'
        if name not in self._records:
            raise BrokenError('one of its storages is missing')
        if self._records[name].file_size != size * storage_type.dtype.itemsize:
            raise BrokenError('one of its storages does not have the size that it should have')
        if name not in self._storages:
            self._storages[name] = self._read_record(name)
        return Storage(self._storages[name], storage_type.dtype, 0, size)

    def _read_record(self, name: str) -> torch.Tensor:
        """Return the bytes of a record, verified by its checksum."""
        record = self._records[name]
        if not self._has_checksums:
            del record.CRC
        buffer = torch.empty(record.file_size, dtype=torch.uint8)
        target = memoryview(buffer.numpy())
        position = 0
        try:
            with self._archive.open(record) as source:
                while chunk := source.read(_CHUNK):
                    target[position:position + len(chunk)] = chunk
                    position += len(chunk)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
            raise BrokenError(f'its archive is damaged, {one_line(error)[:200]}') from None
        if position != record.file_size:
            raise BrokenError('it is truncated')
        return buffer


class _Sequence:
    """Pickles one after the other, followed by the bytes of all storages; the format has no checksums."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._storages: dict[str, tuple[torch.Tensor, int]] = {}
        self._declared = 0

    def check_beginning(self) -> None:
        if self._next() != _MAGIC_NUMBER or self._next() != _PROTOCOL:
            raise BrokenError('it does not begin as a checkpoint')

    def read(self) -> Any:
        self.check_beginning()
        self._next()  # sizes of C types where it was written
        value = self._next()
        keys = self._next()
        if type(keys) is not list or not all(type(key) is str for key in keys) or (
                sorted(keys) != sorted(self._storages)):
            raise BrokenError('its list of storages is wrong')
        for key in keys:
            self._fill(*self._storages[key])
        return value

    def _next(self) -> Any:
        left = self._size - self._file.tell()
        return _reader(self._file, left, self._size, self._find_storage).read()

    def _find_storage(self, saved_id: Any) -> Storage:
        storage_type, key, size = _checked_id(saved_id, 6)
        itemsize = storage_type.dtype.itemsize
        if key not in self._storages:
            self._declared += size * itemsize
            if self._declared > self._size - self._file.tell():
                raise BrokenError('it is truncated')
            self._storages[key] = torch.empty(size * itemsize, dtype=torch.uint8), itemsize
        buffer, saved_itemsize = self._storages[key]
        if saved_itemsize != itemsize or len(buffer) != size * itemsize:
            raise BrokenError('one of its storages has two types or sizes')
        first = 0
        if saved_id[5] is not None:
            _, first, view_size = saved_id[5]
            if not (type(first) is type(view_size) is int and 0 <= first <= first + view_size <= size):
                raise BrokenError('a part of a storage lies outside of it')
            size = view_size
        return Storage(buffer, storage_type.dtype, first, size)

    def _fill(self, buffer: torch.Tensor, itemsize: int) -> None:
        """Read the bytes of a storage, which follow the number of its elements."""
        number = int.from_bytes(self._file.read(8), 'little')
        if number * itemsize != len(buffer):
            raise BrokenError('one of its storages does not have the size that it should have')
        if self._file.readinto(memoryview(buffer.numpy())) != len(buffer):  # type: ignore[attr-defined]
            raise BrokenError('it is truncated')
