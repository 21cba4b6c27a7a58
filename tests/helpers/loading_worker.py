"""A process that loads checkpoint files under limits, and tells what became of each of them.

    with LoadingWorker(folder) as worker:
        worker.load(path)  # {'outcome': 'loaded'}, or {'outcome': 'refused', 'sentence': '…'}
"""
import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

SECONDS = 10
MEMORY = 2 * 2**30

_WORKER = """
import copy, json, os, resource, sys, traceback, warnings
warnings.simplefilter('ignore')
import torch
from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError

torch.set_num_threads(1)
for codec in ('cp437', 'latin-1', 'utf-8', 'ascii'):  # imported when a file is first decoded so
    ''.encode(codec)
answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)
changes = []
WATCHED = ('os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.link', 'os.symlink', 'os.chmod', 'os.chown',
           'os.truncate', 'os.utime', 'os.system', 'os.exec', 'os.posix_spawn', 'os.putenv', 'os.fork',
           'subprocess.Popen', 'socket.connect', 'socket.getaddrinfo', 'shutil.move', 'shutil.rmtree', 'exec')
watching = False

def watch(event, arguments):
    if not watching:
        return
    if event in WATCHED or event == 'open' and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        changes.append(f'{event} {arguments}'[:200])

sys.addaudithook(watch)
memory = int(sys.argv[1])
in_use = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + memory, in_use + memory))
print('ready', file=answers, flush=True)
for line in sys.stdin:
    path = json.loads(line)
    changes.clear()
    watching = True
    loaded = None
    try:
        loaded = load_checkpoint(path)
        answer = dict(outcome='loaded')
        copy.deepcopy(loaded)
    except MMKDError as error:
        answer = dict(outcome='refused', sentence=str(error))
    except BaseException:
        answer = dict(outcome='error', trace=traceback.format_exc())
    watching = False
    del loaded
    answer['changes'] = list(changes)
    print(json.dumps(answer), file=answers, flush=True)
"""


class LoadingWorker:
    """Starts the process, and starts it again after an input that ended it.

    Args:
        folder: The working directory of the process, which should stay empty.
        seconds: How long loading one file may take.
        memory: How many bytes it may take.
    """

    def __init__(self, folder: Path, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._folder, self._seconds, self._memory = folder, seconds, memory
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> 'LoadingWorker':
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def load(self, path: str | Path) -> dict:
        """Load a file, and return what happened: ``outcome`` is loaded, refused, error, hang or crash."""
        if self._process is None:
            self._start()
        process = self._process
        process.stdin.write(json.dumps(str(path)) + '\n')
        process.stdin.flush()
        if not select.select([process.stdout], [], [], self._seconds)[0]:
            self._stop()
            return dict(outcome='hang', changes=[])
        line = process.stdout.readline()
        if not line:
            status = process.wait()
            self._stop()
            return dict(outcome='crash', status=status, changes=[])
        answer = json.loads(line)
        answer['changes'] += [f'made {name}' for name in os.listdir(self._folder)]
        return answer

    def _start(self) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, '-c', _WORKER, str(self._memory)], cwd=self._folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, 'PYTHONPATH': root, 'OMP_NUM_THREADS': '1'})
        assert self._process.stdout.readline() == 'ready\n'

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None


def problem(answer: dict) -> str | None:
    """Return what is wrong with an outcome, which must be loaded data or one sentence, or ``None``."""
    if answer['changes']:
        return f'it changed something: {answer["changes"]}'
    if answer['outcome'] == 'refused':
        sentence = answer['sentence']
        if not sentence.endswith('.') or not sentence.isprintable() or len(sentence) > 2000:
            return f'not one sentence: {sentence!r}'
    elif answer['outcome'] != 'loaded':
        return json.dumps(answer)
    return None
