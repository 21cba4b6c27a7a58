"""MMEngine's pure-Python configs, in which types are imported classes."""
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from mmkd.apis import compose_distillation, is_distillation, prepare_config, student_config
from mmkd.cli import read_config
from tests.helpers.tiny import build, tiny_config

HEAD = '''
from mmdet.models import (FPN, DetDataPreprocessor, FasterRCNN, ResNet, RPNHead, Shared2FCBBoxHead,
                          SingleRoIExtractor, StandardRoIHead)
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from torch.optim import SGD
from mmkd.models.distillers import DetectorDistiller
from mmkd.models.methods import SHAKE
'''
CLASSES = ['FPN', 'DetDataPreprocessor', 'FasterRCNN', 'ResNet', 'RPNHead', 'Shared2FCBBoxHead',
           'SingleRoIExtractor', 'StandardRoIHead']


def write(path, model: str, more: str = '') -> str:
    for name in CLASSES:
        model = model.replace(f"'type': '{name}'", f"'type': {name}")
    path.write_text(f'{HEAD}\nstudent = {model}\n{more}\n'
                    'train_dataloader = dict(batch_size=1, num_workers=0)\n'
                    'optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))\n'
                    'default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))\n')
    return str(path)


def check(cfg: Config) -> None:
    prepare_config(cfg)
    assert is_distillation(cfg)
    assert cfg.default_hooks.checkpoint.type == 'mmkd.CheckpointHook'
    model = build(cfg.model)
    assert type(model).__name__ == 'DistilledFasterRCNN'
    assert build_optim_wrapper(model, cfg.optim_wrapper).number_of_student_groups == 1
    assert 'mmkd' not in student_config(cfg).pretty_text


def test_a_pure_python_distilling_config(tmp_path):
    path = write(tmp_path / 'distill.py', repr(tiny_config().model.to_dict()),
                 "model = dict(type=DetectorDistiller, student=student, methods=dict(s=dict(type=SHAKE)),\n"
                 "             teacher=dict(config=dict(model=student), checkpoint='random'))\ndel student")
    check(read_config(path))


def test_a_pure_python_stock_config_in_one_line(tmp_path):
    path = write(tmp_path / 'stock.py', repr(tiny_config().model.to_dict()), 'model = student\ndel student')
    cfg = read_config(path)
    compose_distillation(cfg, 'shake', path, 'random')
    check(cfg)
