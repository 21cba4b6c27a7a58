"""Downloaded checkpoints are complete, the expected ones, and kept only then."""
import hashlib
import io
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mmkd.checkpoints import downloads, load_checkpoint
from mmkd.errors import MMKDError
from tests.helpers.checkpoint_files import call, write_zip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setenv('MMKD_ALLOW_HTTP', '1')
    return tmp_path / 'hub/checkpoints'


def kept(hub) -> list[str]:
    return [name for name in os.listdir(hub) if not name.endswith('.lock')] if hub.exists() else []


@pytest.fixture
def server():
    """Serves the files in ``server.files`` by path: content, and headers that differ."""

    class Handler(BaseHTTPRequestHandler):

        def do_GET(self):
            server.asked.append(self.path)
            content, headers = server.files[self.path.partition('?')[0]]
            self.send_response(302 if 'Location' in headers else 200)
            for name, value in {'Content-Length': len(content), **headers}.items():
                if value is not None:
                    self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.asked, server.files = [], {}
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def checkpoint(value: float = 1) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state_dict=dict(a=torch.tensor([value]))), buffer)
    return buffer.getvalue()


def test_download_once(hub, server):
    content = checkpoint()
    name = f'/models/teacher-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    server.files[name] = content, {}
    for _ in range(2):
        assert load_checkpoint(f'{server.url}{name}?download=true')['state_dict']['a'] == 1
    assert server.asked == [f'{name}?download=true']
    (cached, ) = kept(hub)
    assert cached.endswith(os.path.basename(name))


def test_addresses_with_the_same_file_name_are_kept_apart(hub, server):
    server.files |= {'/a/teacher.pth': (checkpoint(1), {}), '/b/teacher.pth': (checkpoint(2), {})}
    assert load_checkpoint(f'{server.url}/a/teacher.pth')['state_dict']['a'] == 1
    assert load_checkpoint(f'{server.url}/b/teacher.pth')['state_dict']['a'] == 2


def refused(hub, url, *words) -> None:
    with pytest.raises(MMKDError) as caught:
        load_checkpoint(url, role='teacher checkpoint')
    sentence = str(caught.value)
    for word in ('teacher checkpoint', url, 'could not be downloaded', 'local file', *words):
        assert word in sentence
    assert sentence.isprintable()
    assert kept(hub) == []


@pytest.mark.parametrize(('content', 'words'), [
    (b'<!DOCTYPE html><html>Not found</html>', 'web page'), (b'', 'pickle'), (b'no checkpoint', ''),
    (checkpoint()[:-50], 'damaged')])
def test_what_is_no_checkpoint_is_not_kept(hub, server, content, words):
    server.files['/teacher.pth'] = content, {}
    refused(hub, f'{server.url}/teacher.pth', words)
    server.files['/teacher.pth'] = checkpoint(), {}
    assert load_checkpoint(f'{server.url}/teacher.pth')


@pytest.mark.parametrize('length', [8, 64])
def test_another_digest_than_the_name_says(hub, server, length):
    server.files[f'/teacher-{"0a" * (length // 2)}.pth'] = checkpoint(), {}
    refused(hub, f'{server.url}/teacher-{"0a" * (length // 2)}.pth', 'SHA-256', 'and not with 0a0a0a0a')


@pytest.mark.parametrize('name', ['teacher-20230131.pth', 'teacher-1234.pth', 'teacher.pth', 'resnet-v1.pth'])
def test_names_without_a_digest(hub, server, name):
    server.files[f'/{name}'] = checkpoint(), {}
    assert load_checkpoint(f'{server.url}/{name}')


def test_less_arrives_than_announced(hub, server):
    content = checkpoint()
    server.files['/teacher.pth'] = content, {'Content-Length': len(content) + 1000}
    refused(hub, f'{server.url}/teacher.pth')


def test_missing_on_the_server(hub, server):
    refused(hub, f'{server.url}/none.pth')


def test_without_encryption(hub, server, monkeypatch):
    monkeypatch.delenv('MMKD_ALLOW_HTTP')
    server.files['/teacher.pth'] = checkpoint(), {}
    refused(hub, f'{server.url}/teacher.pth', 'MMKD_ALLOW_HTTP=1')
    assert server.asked == []


def test_redirects(hub, server, monkeypatch):
    server.files |= {'/old.pth': (b'', dict(Location='/new.pth')), '/new.pth': (checkpoint(), {}),
                     '/file.pth': (b'', dict(Location='file:///etc/passwd'))}
    assert load_checkpoint(f'{server.url}/old.pth')
    with pytest.raises(MMKDError, match='could not be downloaded'):
        load_checkpoint(f'{server.url}/file.pth')
    monkeypatch.delenv('MMKD_ALLOW_HTTP')
    with pytest.raises(OSError, match='not encrypted'):  # what a redirect from https does
        downloads._SecureRedirects().redirect_request(None, None, 302, '', {}, f'{server.url}/new.pth')


def test_a_killed_download_leaves_nothing_that_counts(hub, server):
    server.files['/teacher.pth'] = checkpoint(), {}
    hub.mkdir(parents=True)
    name = hashlib.sha256(f'{server.url}/teacher.pth'.encode()).hexdigest()[:8] + '-teacher.pth'
    (hub / f'{name}.partial').write_bytes(b'half' * 1000)
    assert load_checkpoint(f'{server.url}/teacher.pth')
    assert kept(hub) == [name]


def test_processes_that_need_the_same_file_download_it_once(hub, server):
    server.files['/teacher.pth'] = checkpoint(), {}
    threads = [threading.Thread(target=load_checkpoint, args=(f'{server.url}/teacher.pth', ))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ['/teacher.pth']


def test_downloaded_code_is_not_run(hub, server, tmp_path):
    write_zip(tmp_path / 'attack.pth', call('os', 'mkdir', str(tmp_path / 'executed')))
    server.files['/teacher.pth'] = (tmp_path / 'attack.pth').read_bytes(), {}
    with pytest.raises(MMKDError, match='os.mkdir'):
        load_checkpoint(f'{server.url}/teacher.pth')
    assert not (tmp_path / 'executed').exists()
