"""Checkpoints that were changed at random are loaded, or refused in one sentence."""
import os
import time
from collections import Counter

import pytest

from tests.fuzz_checkpoints import fuzz, valid_files
from tests.helpers.loading_worker import LoadingWorker, problem


@pytest.mark.slow
def test_fuzzing(tmp_path):
    (tmp_path / 'empty').mkdir()
    counts: Counter = Counter()
    start = time.monotonic()
    with LoadingWorker(tmp_path / 'empty') as worker:
        for round_seed in range(100):
            fuzz(100, round_seed, worker, tmp_path, counts)
            if time.monotonic() - start > 25:
                break
    assert set(counts) == {'loaded', 'refused'} and sum(counts.values()) >= 100


@pytest.mark.slow
def test_the_worker_notices_what_it_should(tmp_path, monkeypatch):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'weights.pth').write_bytes(valid_files()[0])
    with LoadingWorker(tmp_path / 'empty') as worker:
        assert worker.load(tmp_path / 'weights.pth') == dict(outcome='loaded', changes=[])
        (tmp_path / 'empty/file').write_text('')
        assert problem(worker.load(tmp_path / 'weights.pth'))
        (tmp_path / 'empty/file').unlink()
    monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', '1')
    with LoadingWorker(tmp_path / 'empty', seconds=2) as worker:
        for outcome, code in dict(refused=f'open({os.fspath(tmp_path / "written")!r}, "w").close()',
                                  hang='__import__("time").sleep(5)').items():
            (tmp_path / 'attack.pth').write_bytes(b'cbuiltins\neval\n(V' + code.encode() + b'\ntR.')
            answer = worker.load(tmp_path / 'attack.pth')
            assert answer['outcome'] == outcome and problem(answer)
