"""Query-based detectors with AMP, balance, class mapping, sample weights, the gap hook, and export."""
import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from mmkd.engine.hooks import TeacherGapHook
from mmkd.errors import MMKDError
from mmkd.models.spots import Recorder, queries_of, resolve_spot
from mmkd.models.step import Step
from tests.helpers.queries import query_batch, query_detector
from tests.helpers.tiny import build, distill
from tests.test_models.test_methods.test_query_families import METHODS, make, opinionated

KD_AND_BOXES = ('kd_shared', 'boxes_shared')


def with_own_weights(model):
    """Give the teacher the student's weights, in eval mode but for the losses."""
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith('mmkd.')}
    model.mmkd.teacher.model.load_state_dict(weights)
    model.eval()
    model.training = True
    return model


@pytest.mark.parametrize('match', ['kd', 'kd_shared'])
def test_autocast(match):
    """Half precision changes the outputs, but not which queries are compared."""
    model = build(distill(query_detector('dino'), query_detector('dino'), **{match: METHODS[match]}))
    opinionated(model)
    model = with_own_weights(model)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(*query_batch(model).values())
    total, _ = model.parse_losses(losses)
    total.backward()
    assert losses[f'{match}.student_teacher_agreement'] > 0.9
    assert losses[f'{match}.loss_student'] < 0.05


def test_queries_are_matched_and_answered_once_for_several_methods(monkeypatch):
    model = make('dino', *KD_AND_BOXES)
    calls = []
    model.decoder.register_forward_hook(lambda *_: calls.append('decoder'))
    model(**query_batch(model), mode='loss')
    assert calls == ['decoder'] * 2  # the student's own queries, and the teacher's

    model = make('dino', 'kd', 'boxes')
    for name in ('kd', 'boxes'):
        method = model.mmkd.methods[name]
        stock = method.match.assigner.assign

        def assign(*args, stock=stock, **kwargs):
            calls.append('assign')
            return stock(*args, **kwargs)

        monkeypatch.setattr(method.match.assigner, 'assign', assign)
    calls.clear()
    model(**query_batch(model), mode='loss')
    assert calls == ['assign'] * 2 * 3  # for two images, in two decoder layers and of the proposals


@pytest.mark.parametrize('method', ['kd', 'shake_shared'])
def test_balance(method):
    cfg = distill(query_detector('dino'), query_detector('dino', 16),
                  m=dict(METHODS[method], balance='gradient', share=0.5))
    model = build(cfg)
    opinionated(model.mmkd.teacher.model)
    losses = model(**query_batch(model), mode='loss')
    assert model.mmkd.gradient_balance.ratios[0] > 0
    model.parse_losses(losses)[0].backward()
    assert losses['m.loss_student'] > 0


def test_ema_copies_share_the_teacher():
    model = make('dino', 'kd_shared')
    copied = copy.deepcopy(model)
    assert copied.mmkd.methods['kd_shared'].match.teachers[0] is model.mmkd.teacher


def test_class_mapping():
    """A teacher with the same classes in another order teaches the same."""
    order = [2, 0, 1]
    cfgs = [distill(query_detector('dino'), query_detector('dino'), kd=METHODS['kd']) for _ in range(2)]
    cfgs[1]['teacher']['class_mapping'] = order
    models = [build(cfg) for cfg in cfgs]
    opinionated(models[0])
    models[1].load_state_dict(models[0].state_dict())
    models = [with_own_weights(model) for model in models]
    inverse = torch.tensor(order).argsort()
    mapped = models[1].mmkd.teacher.model.bbox_head
    with torch.no_grad():
        for branch in mapped.cls_branches:
            branch.weight.copy_(branch.weight[inverse].clone())
            branch.bias.copy_(branch.bias[inverse].clone())
    batch = query_batch(models[0])
    losses = []
    for model in models:
        torch.manual_seed(0)
        losses.append(model.loss(*copy.deepcopy(batch).values())['kd.loss_student'].item())
    assert losses == [pytest.approx(0, abs=1e-5)] * 2


def test_foreground_queries_are_those_of_objects():
    model = make('dino', 'kd')
    batch = query_batch(model)
    with Recorder(model, dict(outputs=resolve_spot(model, 'cls_outputs', 'student'))) as recorder:
        model.loss(*batch.values())
    outputs = recorder['outputs']
    layout = model.mmkd.methods['kd'].layout
    logits = layout.logits(outputs)
    step = Step(model, batch['inputs'], batch['data_samples'], dict(cls_outputs=outputs), [])
    weights = layout.weights('foreground', outputs, logits, step)
    objects = sum(len(sample.gt_instances) for sample in batch['data_samples'])
    assert [weight.sum().item() for weight in weights] == [objects] * 3  # proposals and two layers
    confidence = layout.weights('teacher', outputs, logits, step)
    for weight, layer in zip(confidence, queries_of(outputs).logits, strict=True):
        assert torch.equal(weight, layer.flatten(0, 1).sigmoid().amax(dim=1))
    assert all(bool((weight == 1).all()) for weight in layout.weights('uniform', outputs, logits, step))


@pytest.mark.parametrize('family', ['detr', 'dino'])
def test_the_gap_of_a_student_that_is_its_teacher(family):
    model = build(distill(query_detector(family), query_detector(family), kd=METHODS['kd']))
    opinionated(model)
    model = with_own_weights(model).eval()
    hook, runner = TeacherGapHook(), SimpleNamespace(model=model)
    hook.before_run(runner)
    torch.manual_seed(0)
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    data = dict(inputs=images, data_samples=query_batch(model)['data_samples'])
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=(64, 64), scale_factor=(1.0, 1.0)))
    for scale in (1.0, 1.5):
        with torch.no_grad():
            for name, parameter in model.mmkd.teacher.model.bbox_head.named_parameters():
                if 'cls' in name:
                    parameter.mul_(scale)
            hook.before_val_epoch(runner)
            hook.before_val_iter(runner, 0, data)
            batch = model.data_preprocessor(copy.deepcopy(data), False)
            model.predict(batch['inputs'], batch['data_samples'])
            hook.after_val_iter(runner, 0, data)
        metrics: dict = {}
        hook.after_val_epoch(runner, metrics)
        if scale == 1:
            assert metrics['gap/kl'] == pytest.approx(0, abs=1e-5)
            assert metrics['gap/agreement'] == pytest.approx(1)
        else:
            assert metrics['gap/kl'] > 1e-4


@pytest.mark.parametrize('family', ['detr', 'dino', 'ddq'])
def test_export_of_a_trained_class_branch(family):
    proxy = dict(type='mmkd.CopiedHead', source='teacher', init='teacher')
    model = build(distill(query_detector(family), query_detector(family, 16),
                          m=dict(type='mmkd.ProxyDistill', proxy=proxy)))
    proxy = model.mmkd.methods['m'].proxies[0]
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(1)
    if family == 'ddq':
        with pytest.raises(MMKDError, match='discards queries'):
            proxy.export()
        return
    config, weights = proxy.export()
    stock = MODELS.build(ConfigDict(copy.deepcopy(config.model)))
    stock.load_state_dict(weights)
    before = model.mmkd.teacher.model.state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    branch = 'bbox_head.fc_cls' if family == 'detr' else 'bbox_head.cls_branches'
    assert changed and all(name.startswith(branch) for name in changed)
    assert len(changed) == (2 if family == 'detr' else 4)  # the branch for the proposals stays
