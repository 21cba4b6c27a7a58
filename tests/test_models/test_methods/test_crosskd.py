import copy
import functools
import math

import pytest
import torch
from mmdet.models.losses.iou_loss import giou_loss, iou_loss
from mmdet.testing import demo_mm_inputs
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.methods.crosskd import CrossKD, align_statistics, quality_focal_divergence
from tests.helpers import families
from tests.helpers.families import CLASSES
from tests.helpers.tiny import build, distill

IMPORTED = CrossKD  # registers mmkd.CrossKD
FAMILIES = ('retinanet', 'atss', 'gfl', 'fcos')
PREDICTORS = dict(retinanet=('retina_cls', 'retina_reg'), atss=('atss_cls', 'atss_reg'),
                  gfl=('gfl_cls', 'gfl_reg'), fcos=('conv_cls', 'conv_reg'))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_quality_focal_divergence_against_loops():
    torch.manual_seed(0)
    target, prediction = 3 * torch.randn(2, 4, 5, dtype=torch.float64)
    expected = []
    for t_row, s_row in zip(target.tolist(), prediction.tolist(), strict=True):
        total = 0.0
        for t, s in zip(t_row, s_row, strict=True):
            p, q = sigmoid(t), sigmoid(s)
            total += abs(p - q) * -(p * math.log(q) + (1 - p) * math.log(1 - q))
        expected.append(total)
    torch.testing.assert_close(quality_focal_divergence(prediction, target),
                               torch.tensor(expected, dtype=torch.float64))


def test_quality_focal_divergence_is_least_where_both_agree():
    target = torch.tensor([[4.0, -4.0]])
    same = target.clone().requires_grad_()
    value = quality_focal_divergence(same, target)
    value.sum().backward()
    assert value.item() == 0 and not same.grad.any()
    other = torch.zeros(1, 2, requires_grad=True)
    value = quality_focal_divergence(other, target)
    value.sum().backward()
    assert value.item() > 0 and other.grad[0, 0] < 0 < other.grad[0, 1]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    value = quality_focal_divergence(*(30 * torch.randn(2, 6, 3)).to(dtype))
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    assert align_statistics(*torch.randn(2, 2, 3, 4, 4).to(dtype)).dtype == dtype


def test_aligned_features_have_the_teachers_statistics():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    t = 5 * t + 1
    aligned = align_statistics(s, t)
    for channel in range(4):
        mine, theirs = aligned[:, channel], t[:, channel]
        assert mine.mean().item() == pytest.approx(theirs.mean().item())
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=1e-5)
        r = torch.corrcoef(torch.stack([mine.flatten(), s[:, channel].flatten()]))[0, 1]
        assert r.item() == pytest.approx(1)


def test_a_single_place_becomes_the_teachers():
    s, t = torch.ones(1, 2, 1, 1, requires_grad=True), torch.tensor([3.0, -2.0]).view(1, 2, 1, 1)
    aligned = align_statistics(s, t)
    aligned.sum().backward()
    assert torch.equal(aligned.detach(), t) and torch.isfinite(s.grad).all()


# Detectors

made = functools.cache(families.detector)


def detector(family: str, size: int = 8):
    return copy.deepcopy(made(family, size))


def pair(student: str | dict, teacher: str | dict | None = None, size: int = 16, **settings):
    teacher = student if teacher is None else teacher
    student = detector(student) if isinstance(student, str) else student
    teacher = detector(teacher, size) if isinstance(teacher, str) else teacher
    method = dict(dict(type='mmkd.CrossKD', layer=1), **settings)
    model = build(distill(student, teacher, crosskd=method))
    with torch.no_grad():  # a random teacher is sure of nothing; this one has opinions
        for layer in sum(PREDICTORS.values(), ()):
            for name, parameter in model.mmkd.teacher.model.bbox_head.named_parameters():
                if name.startswith(f'{layer}.'):
                    parameter.mul_(20 if name.endswith('weight') else 0)
    return model


def batch(model, items=(2, 3), seed: int = 0) -> dict:
    torch.manual_seed(seed)
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 60, 120]], num_classes=CLASSES, num_items=list(items))
    return model.data_preprocessor(data, True)


def distillation(losses: dict) -> dict:
    return {name.removeprefix('crosskd.'): value
            for name, value in losses.items() if name.startswith('crosskd.')}


def reached(model, loss) -> set[str]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    return {'.'.join(name.split('.')[1:3]) if name.startswith('bbox_head') else 'trunk'
            for (name, _), gradient in zip(named, gradients, strict=True)
            if gradient is not None and bool(gradient.any())}


@pytest.mark.parametrize('family', FAMILIES)
def test_a_step(family):
    model = pair(family)
    theirs = {name: value.clone() for name, value in model.mmkd.teacher.model.state_dict().items()}
    losses = model(**batch(model), mode='loss')
    terms = distillation(losses)
    assert set(terms) == {'loss_cls', 'loss_reg'} | ({'loss_centerness'} if family == 'atss' else set())
    assert all(torch.isfinite(term) and term > 0 for term in terms.values()), terms
    # Only what lies before the crossing: the second convolutions and the predictors learn from labels.
    assert reached(model, terms['loss_cls']) == {'trunk', 'cls_convs.0'}
    assert reached(model, terms['loss_reg']) == {'trunk', 'reg_convs.0'}
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    teacher = model.mmkd.teacher.model
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert list(teacher.state_dict()) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in teacher.state_dict().items())
    assert [name for name, _ in model.named_modules() if 'teacher' in name] == []


@pytest.mark.parametrize(('family', 'align'), [*((family, True) for family in FAMILIES), ('gfl', False)])
def test_a_student_like_its_teacher_has_no_loss(family, align):
    model = pair(family, size=8, align=align)
    model.mmkd.teacher.model.load_state_dict({
        name: value for name, value in model.state_dict().items() if not name.startswith('mmkd.')})
    model.backbone.eval()
    terms = distillation(model(**batch(model), mode='loss'))
    for name, term in terms.items():
        assert term.item() == pytest.approx(0, abs=1e-4 if name == 'loss_reg' else 1e-6), name


@pytest.mark.parametrize('family', ['retinanet', 'gfl'])
def test_a_gradient_step_moves_the_student_towards_the_teacher(family):
    model = pair(family)
    data, seen = batch(model), []
    optimizer = torch.optim.SGD([*model.bbox_head.cls_convs.parameters(),
                                 *model.bbox_head.reg_convs.parameters()], lr=1e-4)
    for _ in range(2):
        terms = distillation(model(**data, mode='loss'))
        seen.append(sum(terms.values()))
        optimizer.zero_grad()
        seen[-1].backward()
        optimizer.step()
    assert seen[1] < seen[0]


def before_relu(head, tower: str, layer: int, feature):
    """A tower's features behind its ``layer``-th convolution, layer by layer."""
    for index, conv in enumerate(getattr(head, tower)[:layer]):
        feature = conv.conv(F.relu(feature) if index else feature)
        feature = conv.norm(feature) if conv.with_norm else feature
    return feature


def aligned(s, t):
    shape = s.transpose(0, 1).shape
    s, t = (one.transpose(0, 1).flatten(1) for one in (s, t))
    if s.shape[1] > 1:
        s = (s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True)
        s = s * t.std(1, keepdim=True) + t.mean(1, keepdim=True)
    else:
        s = t
    return s.reshape(shape).transpose(0, 1)


def by_hand(model, data: dict, layer: int, align: bool) -> tuple:
    """Run the layers: cross-head predictions and the teacher's, each as (class levels, box levels)."""
    teacher, own = model.mmkd.teacher, model.extract_feat(data['inputs'])
    head = teacher.model.bbox_head
    other = teacher.model.extract_feat(teacher.convert(data['inputs'], data['data_samples']))
    kind = next(kind for kind, (layer, _) in PREDICTORS.items() if hasattr(head, layer))
    crossed, target = ([], []), ([], [])
    for level, (mine, theirs) in enumerate(zip(own, other, strict=True)):
        for branch, tower in enumerate(('cls_convs', 'reg_convs')):
            s, t = (before_relu(one, tower, layer, feature)
                    for one, feature in ((model.bbox_head, mine), (head, theirs)))
            for feature, outputs in ((aligned(s, t) if align else s, crossed), (t, target)):
                feature = F.relu(feature)
                for conv in getattr(head, tower)[layer:]:
                    feature = conv(feature)
                feature = getattr(head, PREDICTORS[kind][branch])(feature)
                if branch and kind != 'retinanet':
                    feature = head.scales[level](feature)
                outputs[branch].append(feature.exp() if branch and kind == 'fcos' else feature)
    return crossed, target


def student_call(model, data: dict) -> tuple[list, dict]:
    """What the student's own classification loss is called with, level by level, and the terms of CrossKD."""
    calls = []
    handle = model.bbox_head.loss_cls.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    losses = model(**data, mode='loss')
    handle.remove()
    return calls, distillation(losses)


def rows(levels, channels: int):
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels])


def boxes(head, levels):
    priors = head.prior_generator.grid_priors([level.shape[-2:] for level in levels], device='cpu')
    priors = torch.cat([level.repeat(2, 1) for level in priors])
    return head.bbox_coder.decode(priors, rows(levels, 4))


@pytest.mark.parametrize(('family', 'align', 'layer'), [('retinanet', True, 2), ('retinanet', False, 1),
                                                  ('atss', True, 1), ('gfl', True, 1), ('gfl', False, 2),
                                                  ('fcos', True, 1)])
def test_losses_against_layers_run_by_hand(family, align, layer):
    model = pair(family, align=align, layer=layer, cls_weight=0.5, reg_weight=2.0)
    model.backbone.eval()  # the batch is run twice
    data = batch(model)
    calls, terms = student_call(model, data)
    crossed, target = by_hand(model, data, layer, align)
    head = model.mmkd.teacher.model.bbox_head
    labels = torch.cat([args[1][0] if isinstance(args[1], tuple) else args[1] for args, _ in calls]).flatten()
    positive = (labels < CLASSES).sum()
    assert positive > 2
    if family == 'fcos':
        weights = torch.ones(len(labels))
        points = head.prior_generator.grid_priors([level.shape[-2:] for level in target[0]], device='cpu')
        gt = [sample.gt_instances for sample in data['data_samples']]
        own, distances = model.bbox_head.get_targets(points, gt)
        divisor = sum(
            math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
            for left, top, right, bottom in torch.cat(distances)[torch.cat(own) < CLASSES].tolist())
    else:
        weights = torch.cat([
            (args[2] if len(args) > 2 else kwargs['weight']).flatten() for args, kwargs in calls])
        divisor = positive
        assert 0 < (weights == 0).sum() < len(weights)
    p, q = rows(target[0], CLASSES).sigmoid(), rows(crossed[0], CLASSES)
    focal = (p - q.sigmoid()).abs() * F.binary_cross_entropy_with_logits(q, p, reduction='none')
    torch.testing.assert_close(terms['loss_cls'], 0.5 * (weights * focal.sum(1)).sum() / divisor,
                               rtol=1e-4, atol=1e-5)
    sure = p.amax(1) * (weights > 0)
    if family == 'gfl':
        q, p = (rows(one[1], 17) for one in (crossed, target))
        divergence = F.kl_div(q.log_softmax(1), p.softmax(1), reduction='none').sum(1).view(-1, 4).mean(1)
        expected = (sure * divergence).sum() / sure.sum()
    else:
        loss = iou_loss if family == 'fcos' else giou_loss
        extra = dict(mode='log') if family == 'fcos' else {}
        each = loss(boxes(head, crossed[1]), boxes(head, target[1]), reduction='none', **extra)
        expected = (sure * each).sum() / divisor
    torch.testing.assert_close(terms['loss_reg'], 2 * expected, rtol=1e-4, atol=1e-5)


def test_centerness_of_atss():
    """Its value is the cross entropy of the released code, less what no student can change; at objects."""
    model = pair('atss')
    model.backbone.eval()  # the batch is run twice
    data, outputs = batch(model), []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, output: outputs.append(output)
        if type(module).__name__ == 'ATSSHead' and not module.training else None)
    calls, terms = student_call(model, data)
    handle.remove()
    *_, target, crossed = outputs  # the first batch is looked at more than once
    positive = torch.cat([args[1] for args, _ in calls]) < CLASSES
    q, p = rows(crossed[2], 1)[positive], rows(target[2], 1)[positive].sigmoid()
    entropy = F.binary_cross_entropy_with_logits
    expected = (entropy(q, p, reduction='sum') - entropy(p.logit(), p, reduction='sum')) / positive.sum()
    torch.testing.assert_close(terms['loss_centerness'], expected, rtol=1e-3, atol=1e-7)


def test_batch_norm_in_the_students_towers_counts_a_batch_once():
    counts = []
    for method in (dict(type='mmkd.CrossKD', layer=1), dict(type='mmkd.KD')):
        student = detector('gfl')
        student.bbox_head.norm_cfg = dict(type='BN')
        model = build(distill(student, detector('gfl', 16), m=method))
        model(**batch(model), mode='loss')
        counts.append({name: buffer for name, buffer in model.bbox_head.named_buffers()})
    assert any(name.endswith('running_mean') for name in counts[0])
    assert all(torch.equal(value, counts[1][name]) for name, value in counts[0].items())


@pytest.mark.parametrize(('student', 'teacher'), [('atss', 'gfl'), ('fcos', 'atss'), ('gfl', 'fcos')])
def test_mixed_pairs(student, teacher):
    model = pair(student, teacher)
    terms = distillation(model(**batch(model), mode='loss'))
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    assert ('loss_centerness' in terms) == (teacher == 'atss')


@pytest.mark.parametrize('family', FAMILIES)
def test_images_without_boxes(family):
    model = pair(family)
    losses = model(**batch(model, items=(0, 0)), mode='loss')
    terms = distillation(losses)
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms['loss_cls'] > 0  # the teacher's opinion counts at all places
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_classes_of_the_teacher_are_mapped():
    teacher = detector('retinanet', 16)
    teacher.bbox_head.num_classes = 5
    cfg = distill(detector('retinanet'), teacher, crosskd=dict(type='mmkd.CrossKD', layer=1))
    with pytest.raises(MMKDError, match='has 5 classes and the student 3'):
        build(cfg)
    cfg['teacher']['class_mapping'] = [4, 0, 2]
    model = build(cfg)
    terms = distillation(model(**batch(model), mode='loss'))
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())


@pytest.mark.parametrize('align', [True, False])
def test_two_teachers_are_averaged(align):
    model = pair('gfl', align=align)
    data = batch(model)
    single = distillation(model(**data, mode='loss'))
    model.mmkd.teachers.append(model.mmkd.teacher)
    model.mmkd.methods['crosskd'].teachers.append(model.mmkd.teacher)
    for name, term in distillation(model(**data, mode='loss')).items():
        torch.testing.assert_close(term, single[name])


def doubled(total, minimum=1e-6):
    return (2 * total).clamp(min=minimum)


@pytest.mark.parametrize('family', FAMILIES)
def test_normalizers_are_averaged_over_ranks(family, monkeypatch):
    model = pair(family)
    data = batch(model)
    alone = distillation(model(**data, mode='loss'))
    for module in ('crosskd', 'dense_targets'):
        monkeypatch.setattr(f'mmkd.models.methods.{module}.mean_over_ranks', doubled)
    for name, term in distillation(model(**data, mode='loss')).items():
        torch.testing.assert_close(term, alone[name] / 2)


def test_terms_of_no_weight_are_left_out():
    model = pair('gfl', reg_weight=0.0)
    assert set(distillation(model(**batch(model), mode='loss'))) == {'loss_cls'}
    model = pair('gfl', cls_weight=0.0)
    assert set(distillation(model(**batch(model), mode='loss'))) == {'loss_reg'}


def test_what_cannot_be_crossed_says_why():
    for student, teacher, role, head in (('faster_rcnn', 'faster_rcnn', 'student', 'StandardRoIHead'),
                                         ('fcos', 'rtmdet', 'teacher', 'RTMDetSepBNHead')):
        with pytest.raises(MMKDError, match=f'such as those of RetinaNet.*; the {role} has a {head}'):
            pair(student, teacher)
    wide = detector('gfl', 16)
    wide.bbox_head.feat_channels = 64
    with pytest.raises(MMKDError, match=r'the student has \[32, 32\] channels and the teacher \[64, 64\]'):
        pair('gfl', wide)
    with pytest.raises(MMKDError, match='must lie between 1 and 2, the depth of the towers of the student'):
        pair('gfl', layer=3)
    with pytest.raises(MMKDError, match='anchors per location'):
        pair('retinanet', 'fcos')
    with pytest.raises(MMKDError, match='CrossKD learns from a teacher'):
        build(dict(type='mmkd.DetectorDistiller', student=detector('gfl'),
                   methods=dict(m=dict(type='mmkd.CrossKD'))))
