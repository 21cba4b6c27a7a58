import copy
from functools import partial

import pytest
import torch
from mmdet.models.detectors import FasterRCNN
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.utils import apply_to

from mmkd.errors import MMKDError
from mmkd.random_state import get_random_state
from tests.helpers.tiny import build, distill, tiny_config

SHAKE = dict(type='mmkd.SHAKE', temperature=2.0)
METHODS = dict(shake=SHAKE, kd=dict(type='mmkd.KD'), pkd=dict(type='mmkd.PKD'))


@pytest.fixture
def model(teacher_config, teacher_checkpoint):
    return build(distill(tiny_config().model, teacher_config, teacher_checkpoint, **METHODS))


def losses_of(model, batch) -> dict:
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    return model.loss(data['inputs'], data['data_samples'])


def parts_reached(model, loss) -> set[str]:
    """Parts of the model in which some parameter has a nonzero gradient."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name_of_part(name) for name, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0}


def name_of_part(name: str) -> str:
    if name.startswith('mmkd.'):
        return '.'.join(name.split('.')[1:4])
    return '.'.join(name.split('.')[:3]) if name.startswith('roi_head') else name.split('.')[0]


CLS_HEAD = {'roi_head.bbox_head.shared_fcs', 'roi_head.bbox_head.fc_cls'}
TRUNK = {'backbone', 'neck'}
SHADOW = {'methods.shake.proxies'}


@pytest.mark.parametrize(('term', 'reached'), [
    ('kd.loss_student', CLS_HEAD | TRUNK),
    ('shake.loss_student', CLS_HEAD | TRUNK),
    ('shake.loss_proxy_teacher', SHADOW | TRUNK),
    ('shake.loss_proxy_student', SHADOW | TRUNK),
    ('pkd.loss_feature', TRUNK),
])
def test_every_term_reaches_what_it_should(model, batch, term, reached):
    loss = losses_of(model, batch)[term]
    assert torch.isfinite(loss) and loss > 0
    assert parts_reached(model, loss) == reached
    assert all(parameter.grad is None for parameter in model.mmkd.teacher.model.parameters())


def test_every_parameter_has_a_gradient(model, batch):
    """Nothing is unused, so distributed training needs no search for unused parameters."""
    total, _ = model.parse_losses(losses_of(model, batch))
    total.backward()
    assert [name for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.grad is None] == []


@pytest.mark.parametrize(('depth', 'extra'), [('head', 'fc_cls shared_fcs'), ('last_layer', 'layers')])
def test_towers_of_the_shadow_head(teacher_config, batch, depth, extra):
    model = build(distill(tiny_config().model, teacher_config, shake=dict(SHAKE, depth=depth)))
    prefix = 'mmkd.methods.shake.proxies.0.'
    own = {name.removeprefix(prefix).removeprefix('heads.0.') for name in model.state_dict()
           if name.startswith('mmkd.')}
    assert {name.split('.')[0] for name in own} == set(extra.split())
    losses = losses_of(model, batch)
    assert parts_reached(model, losses['shake.loss_proxy_teacher']) == SHADOW | TRUNK | (
        {'roi_head.bbox_head.shared_fcs'} if depth == 'last_layer' else set())


def test_the_shadow_head_is_initialized_like_the_students_and_differs_from_it(model):
    own, shadow = model.roi_head.bbox_head, model.mmkd.methods.shake.proxies[0].heads[0]
    assert shadow.fc_cls.weight.shape == own.fc_cls.weight.shape
    assert not torch.equal(shadow.fc_cls.weight, own.fc_cls.weight)
    assert shadow.fc_cls.weight.std().item() == pytest.approx(own.fc_cls.weight.std().item(), rel=0.2)
    assert not any('fc_reg' in name for name in shadow.state_dict())


def test_the_students_own_losses_are_untouched(model, batch):
    """The same seed gives the same samples and the same own losses as the stock detector."""
    stock = MODELS.build(tiny_config().model)
    stock.load_state_dict({key: value for key, value in model.state_dict().items()
                           if not key.startswith('mmkd.')})
    stock.train()
    torch.manual_seed(3)
    expected = losses_of(stock, batch)
    state = get_random_state()['torch']
    torch.manual_seed(3)
    losses = losses_of(model, batch)
    assert torch.equal(get_random_state()['torch'], state)  # distilling draws no numbers
    for name, value in expected.items():
        for one, other in zip(*([x] if torch.is_tensor(x) else x for x in (value, losses[name])),
                              strict=True):
            assert torch.equal(one, other), name


def test_building_and_initializing_leave_the_random_state_alone(teacher_config, teacher_checkpoint):
    torch.manual_seed(5)
    stock = MODELS.build(tiny_config().model)
    stock.init_weights()
    expected = torch.rand(3)
    model = build(distill(tiny_config().model, teacher_config, teacher_checkpoint, **METHODS), seed=5)
    assert torch.equal(torch.rand(3), expected)
    for name, value in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_it_is_the_students_own_class(model):
    assert isinstance(model, FasterRCNN)
    assert {name.split('.')[0] for name, _ in model.named_children()} == {
        'data_preprocessor', 'backbone', 'neck', 'rpn_head', 'roi_head', 'mmkd'}


def test_predictions_are_the_stock_detectors(model, batch):
    stock = MODELS.build(tiny_config().model)
    stock.load_state_dict({key: value for key, value in model.state_dict().items()
                           if not key.startswith('mmkd.')})
    model.eval(), stock.eval()
    for mine, other in zip(model.test_step(copy.deepcopy(batch)), stock.test_step(copy.deepcopy(batch)),
                           strict=True):
        assert torch.equal(mine.pred_instances.bboxes, other.pred_instances.bboxes)


def test_ema_shares_the_teacher(model, batch):
    average = ExponentialMovingAverage(model)
    assert average.module.mmkd.teacher is model.mmkd.teacher
    average.update_parameters(model)
    assert set(average.module.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        assert 'shake.loss_student' in losses_of(average.module, batch)


def in_float32(module) -> None:
    """Keep a module in float32 under autocast."""
    forward = module.forward

    def wrapped(*args):
        to_float = partial(apply_to, expr=lambda x: torch.is_tensor(x), apply_func=torch.Tensor.float)
        with torch.autocast('cpu', enabled=False):
            return forward(*to_float(args))

    module.forward = wrapped


def test_bf16_autocast(model, batch):
    # MMCV's CPU kernels of NMS and RoIAlign know no bf16, whatever the detector.
    for detector in (model, model.mmkd.teacher.model):
        in_float32(detector.rpn_head)
        in_float32(detector.roi_head.bbox_roi_extractor)
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model, batch)
    total, _ = model.parse_losses(losses)
    total.backward()
    for name in ('shake.loss_student', 'kd.loss_student', 'pkd.loss_feature'):
        assert losses[name].dtype == torch.float32 and torch.isfinite(losses[name])
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_frozen_spot_is_an_error(teacher_config, batch):
    cfg = tiny_config().model
    cfg.backbone.frozen_stages = 1
    same = tiny_config().model
    model = build(distill(cfg, dict(same), m=dict(type='mmkd.PKD', spot='backbone.layer1')))
    with pytest.raises(MMKDError, match="'backbone.layer1' carries no gradient"):
        losses_of(model, batch)


def test_reentrant_checkpointing_around_a_spot_is_an_error_and_elsewhere_works(batch):
    from torch.utils.checkpoint import checkpoint
    for module, works in (('backbone.layer3', True), ('backbone', False)):
        model = build(distill(tiny_config().model, dict(tiny_config().model), m=dict(
            type='mmkd.PKD', spot='backbone.layer2')))
        target = model.get_submodule(module)
        forward = target.forward
        target.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=True)
        if works:
            assert parts_reached(model, losses_of(model, batch)['m.loss_feature']) == {'backbone'}
        else:
            with pytest.raises(MMKDError, match='activation checkpointing'):
                losses_of(model, batch)


def test_images_without_objects(model, batch):
    batch = copy.deepcopy(batch)
    for sample in batch['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    losses = losses_of(model, batch)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
