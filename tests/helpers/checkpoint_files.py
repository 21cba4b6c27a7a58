"""Writing checkpoint files of all formats by hand, also such as no program would write."""
import copyreg
import io
import pickle
import zipfile

import torch


def call(module: str, name: str, *arguments) -> bytes:
    """Pickle that calls a function when it is loaded, without a head or an end."""
    def string(text):
        return b'\x8c' + bytes([len(text)]) + text.encode()
    return string(module) + string(name) + b'\x93' + pickle.dumps(arguments, 2)[2:-1] + b'R'


def as_pickle(value: bytes) -> bytes:
    """Pickle of ``dict(state_dict=VALUE)``."""
    return b'\x80\x04}' + b'\x8c\x0astate_dict' + value + b's.'


def write_pickle(path, value):
    path.write_bytes(as_pickle(value))


def write_legacy(path, value):
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = io.BytesIO(buffer.getvalue())
    for _ in range(3):  # the magic number, the version and the platform
        pickle.load(head)
    path.write_bytes(buffer.getvalue()[:head.tell()] + as_pickle(value) + pickle.dumps([]))


def write_zip(path, value):
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            target.writestr(name, as_pickle(value) if name.endswith('data.pkl') else source.read(name))


FORMATS = dict(pickle=write_pickle, legacy=write_legacy, zip=write_zip)


class Made:
    """Is pickled as a call of a function, with a state for what it gives."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class MadeWithKeywords:
    """Is pickled as an object of another class, made with keywords."""

    def __init__(self, kind, *arguments, **keywords):
        self.reduced = (copyreg.__newobj_ex__, (kind, arguments, keywords))

    def __reduce__(self):
        return self.reduced


def text(value: str) -> bytes:
    """Pickle instruction that pushes a short text."""
    return b'\x8c' + bytes([len(value.encode())]) + value.encode()


def named(module: str, name: str) -> bytes:
    """Pickle instructions that push a class or a function."""
    return text(module) + text(name) + b'\x93'


def rewrite_zip(path, change, compression: int = zipfile.ZIP_STORED) -> None:
    """Write an archive again, with valid checksums, after ``change`` got its records by name."""
    with zipfile.ZipFile(path) as source:
        records = {name: source.read(name) for name in source.namelist()}
    change(records)
    with zipfile.ZipFile(path, 'w', compression) as target:
        for name, content in records.items():
            target.writestr(name, content)
