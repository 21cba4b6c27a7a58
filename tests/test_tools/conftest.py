"""Command line tools, run inside the test's own process, and the small files they are given."""
import hashlib
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

from tests.helpers.tiny import REPO, build, distill, forget_runs, tiny_config


@dataclass
class Ended:
    """How a tool ended."""
    code: int
    out: str
    err: str


@dataclass
class Files:
    """Configs and a checkpoint, by path."""
    student: str
    teacher: str
    distilling: str
    weights: str
    root: Path


@pytest.fixture
def run(monkeypatch, capsys):
    """Function that runs a script of ``tools/`` with arguments and returns how it :class:`Ended`."""

    def run(tool: str, *arguments) -> Ended:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        capsys.readouterr()
        forget_runs()
        code = 0
        try:
            with monkeypatch.context() as patch:  # a tool changes how its process loads files
                patch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
                patch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
                runpy.run_path(str(REPO / 'tools' / tool), run_name='__main__')
        except SystemExit as end:
            code = end.code
        finally:
            forget_runs()
            init_default_scope('mmdet')
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(run, monkeypatch, tmp_path, record_property):
    """Function that runs a tool which must refuse its input in one sentence and leave all files alone.

    After the tool and its arguments come words that the sentence must hold.
    """

    def contents() -> dict[Path, str]:
        return {path: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in tmp_path.rglob('*') if path.is_file()}

    def step(*_, **__):
        pytest.fail('a training step was taken')

    def refused(tool: str, arguments, *words) -> str:
        record_property('bad input', ' '.join(map(str, arguments)))
        before = contents()
        with monkeypatch.context() as patch:
            patch.setattr(OptimWrapper, 'update_params', step)
            ended = run(tool, *arguments)
        assert ended.code == 2, ended
        lines = ended.err.strip().splitlines()
        assert len(lines) == 1, ended.err
        sentence = lines[0]
        assert sentence.startswith('error: ')
        assert sentence.endswith('.')
        record_property('one sentence', sentence)
        for word in words:
            assert str(word) in sentence
        after = contents()
        assert {path: after.get(path) for path in before} == before
        assert not [path for path in after if path not in before and path.suffix == '.pth']
        return sentence

    return refused


def small(cfg: Config) -> Config:
    """Shorten a tiny config to one step on small images."""
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.train_dataloader.dataset.indices = 8
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        next(step for step in loader.dataset.pipeline if step.type == 'Resize').scale = (96, 96)
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # nothing to evaluate otherwise: the weights are random
    return cfg


@pytest.fixture(scope='session')
def files(digits, tmp_path_factory) -> Files:
    """A student, a teacher with (random) weights, and the config that distills the one from the other."""
    root = tmp_path_factory.mktemp('tools')
    teacher = small(tiny_config('teacher', digits))
    student = small(tiny_config('student', digits))
    made = Files(*(str(root / name) for name in ('student.py', 'teacher.py', 'distilling.py', 'teacher.pth')),
                 root)
    teacher.dump(made.teacher)
    student.dump(made.student)
    init_default_scope('mmdet')
    torch.save(
        dict(meta=dict(dataset_meta=dict(classes=tuple('0123456789'))),
             state_dict=build(teacher.model).state_dict()), made.weights)
    student.model = distill(student.model, made.teacher, made.weights)
    student.dump(made.distilling)
    return made
