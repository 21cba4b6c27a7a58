"""Every shipped detector config builds and takes a step, and its checkpoint loads into the stock model."""
import ast
import subprocess

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import PretrainedInit, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from mmkd.apis import is_distillation, prepare_config, student_config
from mmkd.models.proxies.heads import find_classifiers
from mmkd.models.spots import classification_heads, probing
from mmkd.models.teachers.building import read_teacher_config
from tests.helpers.shipped import DETECTOR_CONFIGS as CONFIGS
from tests.helpers.tiny import REPO, build


def alias_of(path):
    """Return the base config of a config that adds nothing to it, else ``None``."""
    (first, *rest) = ast.parse((REPO / path).read_text()).body
    base = ast.literal_eval(first.value)
    if rest or '::' in base:
        return None
    return (REPO / path.parent / base).resolve().relative_to(REPO)


ALIASES = {path: alias_of(path) for path in CONFIGS if alias_of(path)}


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path in CONFIGS if path not in ALIASES], ids=str)
def test_config(path, monkeypatch):
    monkeypatch.setattr(PretrainedInit, '__call__', lambda *_: None)  # nothing is downloaded in tests
    monkeypatch.setattr(probing, '_DETECTOR_SIZE', 128)  # networks of full size are slow
    cfg = prepare_config(Config.fromfile(REPO / path))
    for teacher in teachers(cfg):
        teacher.checkpoint = 'random'
        teacher.config = read_teacher_config(teacher.config).to_dict()
        use_few_queries(teacher.config['model'])
    student = cfg.model.student if is_distillation(cfg) else cfg.model
    sample_few_boxes(student)
    use_few_queries(student)
    model = revert_sync_batchnorm(build(cfg.model))
    classifier = model.get_submodule(find_classifiers(model, 'student')[0]).weight
    before = classifier.detach().clone()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model.train_step(demo_batch(model), optimizer)
    assert all(torch.isfinite(value) for value in losses.values())
    if is_distillation(cfg):
        for method in cfg.model.methods:
            assert any(name.startswith(f'{method}.loss') and value > 0 for name, value in losses.items())
    assert not torch.equal(before, classifier)

    stock_cfg = student_config(cfg)
    use_few_queries(stock_cfg.model)
    if 'wrong_labels' not in path.parts:  # these read their data through mmkd
        assert 'mmkd' not in stock_cfg.pretty_text
    stock = MODELS.build(stock_cfg.model)
    stock.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith('mmkd.')})


def teachers(cfg) -> list:
    configured = cfg.model.get('teacher') if is_distillation(cfg) else None
    return configured if isinstance(configured, (list, tuple)) else [configured] if configured else []


def sample_few_boxes(student) -> None:
    """Sample few boxes: RoIAlign's backward pass is slow on CPU, and a few boxes run the same code."""
    cascade_stages = (student.get('train_cfg') or {}).get('rcnn', [])
    for stage in cascade_stages if isinstance(cascade_stages, list) else [cascade_stages]:
        stage.sampler.num = 32


def use_few_queries(model) -> None:
    """Use one layer, and fewer queries than a small image has positions, in query-based detectors."""
    if 'num_queries' in model:
        model['num_queries'] = 20
        model['encoder']['num_layers'] = model['decoder']['num_layers'] = 1
        if model['backbone']['type'] == 'SwinTransformer':
            model['backbone']['depths'] = [1, 1, 1, 1]


def demo_batch(model) -> dict:
    """Return two random images, which are small because the networks have their full size."""
    return demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=classification_heads(model)[0].num_classes,
                          with_mask=model.with_mask)


def test_aliases_name_configs_that_are_tested():
    assert all(name in CONFIGS and name not in ALIASES for name in ALIASES.values())


def test_all_are_in_the_repository():
    if not (REPO / '.git').exists():
        pytest.skip('not a git checkout')
    paths = map(str, (REPO / 'configs').rglob('*.py'))
    ignored = subprocess.run(['git', 'check-ignore', *paths], cwd=REPO, capture_output=True, text=True)
    assert ignored.returncode == 1, ignored.stdout


def test_the_products_are_among_them():
    names = {path.name for path in CONFIGS}
    assert {'shake_faster_rcnn_r50.py', 'kd_faster_rcnn_r50.py', 'student_faster_rcnn_r50.py',
            'shake_retinanet_r50.py'} <= names
    for pair in ('faster-rcnn_r101_r50_fpn_2x_coco', 'retinanet_r101_r50_fpn_2x_coco'):
        assert {f'{method}_{pair}.py' for method in ('kd', 'shake', 'sokd', 'dml')} <= names
    assert {'fcos', 'gfl', 'rtmdet', 'cascade-rcnn'} <= {
        path.stem.split('_')[1] for path in CONFIGS if path.parts[:3] == ('configs', 'detection', 'shake')
        and 'ablations' not in path.parts}
