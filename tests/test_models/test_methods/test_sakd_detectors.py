"""SAKD in detectors: choices per image, routing through the student's heads, and what they leave alone."""
import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.methods.sakd.detector_routing import DetectorRouting
from tests.helpers.families import CLASSES, detector
from tests.helpers.tiny import build, distill
from tests.helpers.two_processes import run_in_two_processes, step_twice


def make(family: str = 'retinanet', method: str | None = 'PKD', teacher_size: int = 16, **settings):
    cfg = dict(type='mmkd.SAKD', method=method, **settings)
    return build(distill(detector(family), detector(family, size=teacher_size), sakd=cfg))


def inputs(model, number: int = 3, seed: int = 0, objects: bool = True) -> dict:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(number):
        corners = torch.rand(index + 1 if objects else 0, 2, generator=generator) * 60
        sizes = 20 + torch.rand(len(corners), 2, generator=generator) * 40
        sample = DetDataSample(metainfo=dict(
            img_shape=(128, 128), pad_shape=(128, 128), ori_shape=(128, 128), batch_input_shape=(128, 128),
            scale_factor=(1.0, 1.0), img_id=index))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners, corners + sizes], dim=1),
            labels=torch.arange(len(corners)) % CLASSES)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    images = torch.randint(256, (number, 3, 128, 128), generator=generator, dtype=torch.uint8)
    return model.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)


def losses_of(model, **kwargs) -> dict:
    torch.manual_seed(0)
    return model(**inputs(model, **kwargs), mode='loss')


def choose(model, choices, monkeypatch) -> None:
    """Replace what the policy draws; gradients still reach it."""
    method = model.mmkd.methods['sakd']
    monkeypatch.setattr(method, '_choose', lambda step: choices + 0 * method.policy.layer.bias.sum())


def optimizer(model):
    return build_optim_wrapper(model, dict(
        constructor='mmkd.DistillOptimWrapperConstructor', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)))


@pytest.mark.parametrize('method', ['PKD', 'CWD'])
def test_two_real_steps(method):
    model = make(method=method)
    wrapper = optimizer(model)
    sakd = model.mmkd.methods['sakd']
    assert sakd.spot_names == ['level1', 'level2', 'level3', 'level4', 'level5', 'logits']
    before = copy.deepcopy(sakd.state_dict())
    for seed in range(2):
        losses = losses_of(model, seed=seed)
        assert {'sakd.loss_feature', 'sakd.loss_kd', 'sakd.loss_routing', 'sakd.loss_balance',
                'sakd.share_level5', 'sakd.share_logits'} <= set(losses)
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        wrapper.update_params(total)
    after = sakd.state_dict()
    moved = {name for name in before if before[name].is_floating_point()
             and not torch.equal(before[name], after[name])}
    assert 'policy.layer.weight' in moved
    assert any(name.startswith('routing.adapters.level1') for name in moved)
