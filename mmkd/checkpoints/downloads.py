"""Downloading checkpoints to torch hub's cache."""
import hashlib
import http.client
import os
import re
from typing import BinaryIO
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from filelock import FileLock
from mmengine.logging import print_log

from ..errors import MMKDError, one_line
from .file_formats import FormatError, check_beginning
from .pickle_reader import BrokenError

HTTP_OPT_IN = 'MMKD_ALLOW_HTTP'
"""The environment variable that allows downloads without encryption, if it is ``1``."""

_CHUNK = 2**20
_TIMEOUT = 60  # seconds without any data
_DIGEST = re.compile(r'-([0-9a-f]{8,64})\.[A-Za-z0-9]+$')
_DATE = re.compile(r'20[0-9]{2}[01][0-9][0-3][0-9]')


class _DownloadError(OSError):
    """A download is not allowed, or did not bring the expected file."""


def local_file(path: str, role: str) -> str:
    """Return the local path of a checkpoint, after downloading it if it is an address.

    Processes on one computer wait for each other, so that only one of them downloads a file.

    Args:
        path: Local path or address.
        role: The name of the file in messages.

    Raises:
        MMKDError: If the file cannot be downloaded, or is not the expected file.
    """
    if not path.lower().startswith(('http://', 'https://')):
        return os.path.expanduser(path)
    # Different addresses may end in the same file name.
    name = hashlib.sha256(path.encode()).hexdigest()[:8] + '-' + os.path.basename(urlparse(path).path)
    cached = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    if os.path.exists(cached):
        return cached
    try:
        os.makedirs(os.path.dirname(cached), exist_ok=True)
        with FileLock(f'{cached}.lock'):
            if not os.path.exists(cached):
                _download(path, cached)
    except (OSError, ValueError, http.client.HTTPException) as error:
        is_explained = isinstance(error, (BrokenError, FormatError, _DownloadError))
        reason = str(error) if is_explained else one_line(error)
        raise MMKDError(f'The {role} {path!r} could not be downloaded ({reason}); download it yourself and '
                        'use the path of the local file instead.') from None
    return cached


class _SecureRedirects(HTTPRedirectHandler):
    """Follows redirects, but none from an encrypted to an unencrypted address."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_encryption(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_encryption(url: str) -> None:
    if not url.lower().startswith('https://') and os.environ.get(HTTP_OPT_IN) != '1':
        raise _DownloadError('http is not encrypted, so anyone on the way can change the file; set '
                             f'{HTTP_OPT_IN}=1 to download it anyway')


def _download(url: str, target: str) -> None:
    """Download a file, and keep it only if it is complete, a checkpoint, and the expected one."""
    _check_encryption(url)
    print_log(f'Downloading {url} to {target}', 'current')
    partial = f'{target}.partial'  # only the owner of the lock writes it, also after a killed download
    try:
        with open(partial, 'w+b') as file:
            digest = _fetch(url, file)
            _check_digest(target, digest)
            file.seek(0)
            check_beginning(file)
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _fetch(url: str, file: BinaryIO) -> str:
    """Write what an address holds to a file, and return its SHA-256."""
    digest, size = hashlib.sha256(), 0
    request = Request(url, headers={'User-Agent': 'mmkd'})
    with build_opener(_SecureRedirects).open(request, timeout=_TIMEOUT) as response:
        expected = response.headers.get('Content-Length')
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    file.flush()
    if expected is not None and size != int(expected):
        raise _DownloadError(f'only {size} of {expected} bytes arrived')
    return digest.hexdigest()


def _check_digest(name: str, digest: str) -> None:
    """Compare the digest with the one in the file name, as publishers of weights write it."""
    match = _DIGEST.search(name)
    if match and not _DATE.fullmatch(match[1]) and not digest.startswith(match[1]):
        raise _DownloadError(f'its SHA-256 begins with {digest[:8]} and not with {match[1][:8]}, as its name '
                             'says')
