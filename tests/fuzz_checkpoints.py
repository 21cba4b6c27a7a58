"""Fuzz the reader of checkpoint files: every file is loaded, or refused in one sentence.

    python tests/fuzz_checkpoints.py --minutes 20

Valid checkpoints of all formats are changed: their bytes, the instructions of their pickles, and the records
of their archives, which then get valid checksums. A process with limits loads them (2 GB of memory, 10 s for
a file, and nothing may be written). ``--seed`` repeats a run; inputs that fail are kept in ``--out``.
"""
import argparse
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.helpers.loading_worker import LoadingWorker, problem

NUMBERS = [0, 1, 2, 3, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, -1, -2**31]
NAMES = [
    'os system', 'builtins eval', 'builtins getattr', 'builtins dict', 'builtins bytearray', 'builtins set',
    'builtins slice', 'builtins complex', 'builtins frozenset', 'builtins bytes', '__builtin__ getattr',
    'collections OrderedDict', 'collections Counter', 'collections defaultdict', '_codecs encode',
    'numpy dtype', 'numpy ndarray', 'numpy._core.multiarray _reconstruct', 'numpy.core.multiarray scalar',
    'numpy._core.numeric _frombuffer', 'mmengine.logging.history_buffer HistoryBuffer',
    'mmengine.optim.scheduler.param_scheduler OneCycleParamScheduler', 'torch FloatStorage',
    'torch LongStorage', 'torch BoolStorage', 'torch.storage UntypedStorage', 'torch Size', 'torch device',
    'torch float32', 'torch._utils _rebuild_tensor_v2', 'torch._utils _rebuild_parameter',
    'torch._utils _rebuild_parameter_with_state', 'torch.serialization _get_layout', 'torch.jit load',
    'torch.storage _load_from_bytes']
INSTRUCTIONS = [
    b'(', b'0', b'1', b'2', b'N', b'\x88', b'\x89', b']', b'}', b')', b'\x8f', b'\x91', b'\x90', b'a', b'e',
    b'b', b's', b'u', b't', b'l', b'd', b'R', b'\x81', b'\x92', b'Q', b'\x85', b'\x86', b'\x87', b'\x93',
    b'\x94', b'K\x01', b'J\xff\xff\xff\xff', b'\x8a\x08' + b'\x7f' * 8, b'\x8b\xff\xff\xff\x7f',
    b'X\xff\xff\xff\xff', b'\x8d' + b'\xff' * 8, b'B\xff\xff\xff\x7f', b'\x8e' + b'\x7f' * 8,
    b'\x96' + b'\x10' + b'\x00' * 7 + b'x' * 16,
    b'\x95' + b'\xff' * 8, b'G' + b'\x7f\xf0' + b'\x00' * 6, b'\x8c\x03f8*', b'\x8c\x02f4', b'\x8c\x01O',
    b'C\x04\x00\x00\x00\x00', b'\x97', b'\x98', b'P0\n', b'I1\n', b'L' + b'9' * 5000 + b'L\n', b'.',
    *(b'c' + name.replace(' ', '\n').encode() + b'\n' for name in NAMES)]


@cache
def contents() -> list:
    """Return what the valid checkpoints hold: what training writes, and every kind of value."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    shared = torch.arange(8.0)
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    training = dict(
        state_dict=model.state_dict(), optimizer=optimizer.state_dict(), ema_state_dict=model.state_dict(),
        meta=dict(epoch=1, iter=4, cfg='model = dict()', seed=3, dataset_meta=dict(classes=('a', 'b'))),
        message_hub=dict(log_scalars={'train/loss': history}, runtime_info=dict(a=np.float64(1))),
        param_schedulers=[dict(anneal=OneCycleParamScheduler._annealing_cos, milestones=Counter([1, 2]))],
        random=dict(numpy=np.random.RandomState(0).get_state(), torch=torch.get_rng_state()[:64]))
    values = dict(
        state_dict=OrderedDict(a=shared, b=shared[2:4], c=shared.view(2, 4).t(), d=torch.ones(2).half()),
        parameter=nn.Parameter(torch.ones(2)), size=torch.Size([2]), device=torch.device('cpu'),
        dtype=torch.float16, arrays=[np.arange(6.0).reshape(2, 3), np.array(['a', 'bc']), np.bool_(True)],
        plain=[{1, 2}, frozenset({1}), 1 + 2j, b'\xff', bytearray(b'ab'), slice(1, 2),
               defaultdict(list, a=[1])])
    return [training, values, dict(weight=torch.zeros(3, dtype=torch.int64))]


@cache
def valid_files() -> list[bytes]:
    """Return valid checkpoints in both formats and several versions of pickle."""
    files = []
    for content in contents():
        for zipped in (True, False):
            for protocol in (2, 4):
                buffer = io.BytesIO()
                torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
                files.append(buffer.getvalue())
    return files


# Mutations; each draws what it does from Hypothesis, which can then shrink it.


def change_bytes(draw, content: bytes) -> bytes:
    """Change some bytes, or a part of the file."""
    data = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 6]))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 512]))
        action = draw(st.sampled_from(
            ['flip', 'set', 'number', 'remove', 'repeat', 'cut', 'insert', 'splice']))
        if action == 'flip' and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif action == 'set':
            data[start:start + length] = draw(st.binary(min_size=length, max_size=length))
        elif action == 'number':
            number = draw(st.sampled_from(NUMBERS)) % 2**64
            data[start:start + 8] = struct.pack('<Q', number)
        elif action == 'remove':
            del data[start:start + length]
        elif action == 'repeat':
            data[start:start] = data[start:start + length] * draw(st.integers(1, 50))
        elif action == 'cut':
            del data[start:]
        elif action == 'insert':
            data[start:start] = draw(st.sampled_from(INSTRUCTIONS))
        elif action == 'splice':
            other = draw(st.sampled_from(valid_files()))
            data[start:start + length] = other[start:start + length]
    return bytes(data)


@cache
def parsed(content: bytes) -> list[tuple[str, bytes]]:
    """Return the instructions of a pickle as pairs of name and bytes."""
    positions = [(opcode.name, position) for opcode, _, position in pickletools.genops(content)]
    ends = [position for _, position in positions[1:]] + [len(content)]
    return [(name, content[start:end]) for (name, start), end in zip(positions, ends, strict=True)]


def change_pickle(draw, content: bytes) -> bytes:
    """Change some instructions of a pickle."""
    parts = list(parsed(content))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 8]))):
        where = draw(st.integers(0, len(parts) - 1)) if parts else 0
        action = draw(st.sampled_from(
            ['remove', 'insert', 'insert', 'repeat', 'swap', 'number', 'move', 'name']))
        if action == 'remove':
            del parts[where:where + draw(st.integers(1, 4))]
        elif action == 'insert':
            parts.insert(where, ('', draw(st.sampled_from(INSTRUCTIONS))))
        elif action == 'repeat':
            some = parts[where:where + draw(st.integers(1, 8))]
            parts[where:where] = some * draw(st.sampled_from([1, 2, 10, 1000]))
        elif action == 'swap' and parts:
            other = draw(st.integers(0, len(parts) - 1))
            parts[where], parts[other] = parts[other], parts[where]
        elif action == 'number':
            places = [index for index, (name, _) in enumerate(parts) if name in (
                'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINGET')]
            if places:
                number = pickle.dumps(draw(st.sampled_from(NUMBERS)), 2)[2:-1]
                parts[draw(st.sampled_from(places))] = ('', number)
        elif action == 'move':
            some = parts[where:where + draw(st.integers(1, 12))]
            to = draw(st.integers(0, len(parts)))
            parts[to:to] = some
        elif action == 'name':
            places = [index for index, (name, _) in enumerate(parts) if name in ('GLOBAL', 'STACK_GLOBAL')]
            if places:
                name = draw(st.sampled_from(NAMES)).replace(' ', '\n').encode()
                parts[draw(st.sampled_from(places))] = ('', b'c' + name + b'\n')
    return b''.join(part for _, part in parts)


def change_instructions(draw, content: bytes) -> bytes:
    """Change a pickle inside a checkpoint; archives get valid checksums."""
    if content.startswith(b'PK'):
        records = read_records(content)
        name = next(name for name in records if name.endswith('/data.pkl'))
        records[name] = change_pickle(draw, records[name])
        return write_records(records)
    file = io.BytesIO(content)
    starts = [0]
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        starts.append(file.tell())
    which = draw(st.sampled_from([0, 2, 3, 3, 3, 3, 4]))
    start, end = starts[which], starts[which + 1]
    return content[:start] + change_pickle(draw, content[start:end]) + content[end:]


def change_records(draw, content: bytes) -> bytes:
    """Change the records of an archive, or how they are stored."""
    if not content.startswith(b'PK'):
        return change_bytes(draw, content)
    records = list(read_records(content).items())
    compression = zipfile.ZIP_STORED
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.integers(0, len(records) - 1)) if records else 0
        action = draw(st.sampled_from(
            ['remove', 'repeat', 'rename', 'grow', 'cut', 'swap', 'compress', 'script']))
        if action == 'compress':
            compression = zipfile.ZIP_DEFLATED
        elif action == 'script':
            records.append(('archive/constants.pkl', b''))
        elif not records:
            break
        elif action == 'remove':
            del records[where]
        elif action == 'repeat':
            records.append(records[where])
        elif action == 'rename':
            names = ['archive/data/0', 'archive/data/1', '../x', '/tmp/x', 'data.pkl', 'archive/byteorder',
                     'a/', 'archive/version', 'other/data.pkl', 'archive/data/\x1b[2J']
            records[where] = draw(st.sampled_from(names)), records[where][1]
        elif action == 'grow':
            size = draw(st.sampled_from([1, 100, 2**20]))
            records[where] = records[where][0], records[where][1] + bytes(size)
        elif action == 'cut':
            name, old = records[where]
            records[where] = name, old[:draw(st.integers(0, len(old)))]
        elif action == 'swap':
            other = draw(st.integers(0, len(records) - 1))
            (name, old), (other_name, other_old) = records[where], records[other]
            records[where], records[other] = (name, other_old), (other_name, old)
    return write_records(records, compression)


@cache
def _records(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_records(content: bytes) -> dict[str, bytes]:
    """Return the records of a valid archive."""
    return dict(_records(content))


def write_records(records, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive of these records, a dict or pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, content in records.items() if isinstance(records, dict) else records:
            archive.writestr(name, content)
    return buffer.getvalue()


@st.composite
def mutated_files(draw) -> bytes:
    """Draw a checkpoint that was changed in one way, and sometimes in its bytes too."""
    content = draw(st.sampled_from(valid_files()))
    change = draw(st.sampled_from([change_instructions, change_instructions, change_bytes, change_records]))
    content = change(draw, content)
    if draw(st.integers(0, 9)) == 0:
        content = change_bytes(draw, content)
    return content


def fuzz(number: int, random_seed: int, worker: LoadingWorker, folder: Path, counts: Counter) -> None:
    """Load ``number`` mutated files.

    Args:
        number: The number of files.
        random_seed: Decides which files.
        worker: Loads them.
        folder: Folder for the file that is loaded next.
        counts: Is increased by the outcomes.

    Raises:
        AssertionError: For the smallest file found whose outcome is not as promised.
    """
    path = folder / 'input.pth'

    @seed(random_seed)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False)
    @given(mutated_files())
    def load(content: bytes) -> None:
        path.write_bytes(content)
        answer = worker.load(path)
        counts[answer['outcome']] += 1
        found = problem(answer)
        if found:
            (folder / 'failing.pth').write_bytes(content)
        assert found is None, found

    with warnings_ignored():
        load()


def warnings_ignored():
    """Return a context in which zipfile does not warn of records of the same name."""
    import warnings
    context = warnings.catch_warnings()
    warnings.simplefilter('ignore')
    return context


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=20, help='how long (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=random.randrange(2**31), help='of the first round')
    parser.add_argument('--out', default='.', help='folder for inputs that fail (default: the current one)')
    args = parser.parse_args()
    counts: Counter = Counter()
    findings = 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder, empty = Path(name), Path(name) / 'empty'
        empty.mkdir()
        with LoadingWorker(empty) as worker:
            round_seed = args.seed
            while time.monotonic() - start < 60 * args.minutes:
                try:
                    fuzz(2000, round_seed, worker, folder, counts)
                except AssertionError as error:
                    findings += 1
                    kept = Path(args.out) / f'failing-{round_seed}.pth'
                    kept.write_bytes((folder / 'failing.pth').read_bytes())
                    print(f'seed {round_seed}: {error}\nkept as {kept}', flush=True)
                round_seed += 1
                print(f'{(time.monotonic() - start) / 60:.1f} min, seeds from {args.seed}: {dict(counts)}, '
                      f'{findings} findings', flush=True)
    sys.exit(bool(findings))


if __name__ == '__main__':
    os.environ.pop('MMKD_ALLOW_UNSAFE_CHECKPOINTS', None)
    main()
