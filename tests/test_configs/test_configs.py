"""Every shipped config builds, takes a real step, and what it saves loads into the stock model."""
import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from mmkd.apis import is_distillation, prepare_config, student_config
from tests.tiny import REPO, build

CONFIGS = sorted(path.relative_to(REPO) for path in (REPO / 'configs').rglob('*.py')
                 if '_base_' not in path.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config(path):
    cfg = prepare_config(Config.fromfile(REPO / path))
    student = cfg.model.student if is_distillation(cfg) else cfg.model
    student.backbone.init_cfg = None  # nothing is downloaded in tests
    if is_distillation(cfg):
        cfg.model.teacher.checkpoint = 'random'
    model = build(cfg.model)
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    data = demo_mm_inputs(2, [[3, 96, 96]] * 2, num_classes=model.roi_head.bbox_head.num_classes)
    losses = model.train_step(data, optimizer)
    assert all(torch.isfinite(value) for value in losses.values())
    if is_distillation(cfg):
        for method in cfg.model.methods:
            assert any(name.startswith(f'{method}.loss') and value > 0 for name, value in losses.items())
    after = model.state_dict()
    head = 'roi_head.bbox_head.fc_cls.weight'
    assert not torch.equal(before[head], after[head])

    stock_cfg = student_config(cfg)
    assert 'mmkd' not in stock_cfg.pretty_text
    stock = MODELS.build(stock_cfg.model)
    stock.load_state_dict({name: value for name, value in after.items() if not name.startswith('mmkd.')})


def test_the_product_is_among_them():
    assert {'shake_faster_rcnn_r50.py', 'kd_faster_rcnn_r50.py', 'student_faster_rcnn_r50.py'} <= {
        path.name for path in CONFIGS}
