import copy
import functools
import math

import pytest
import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmdet.testing import demo_mm_inputs
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.losses.distribution import edge_divergence
from mmkd.models.methods.dense_targets import assign
from mmkd.models.methods.ld import LD, atss_threshold, region_around_objects, valuable_region
from tests.helpers import families
from tests.helpers.families import CLASSES
from tests.helpers.tiny import build, distill

IMPORTED = LD  # registers mmkd.LD


def loops_edge_divergence(student, teacher, temperature):
    """The same in Python: rows of 4 lists of bins."""
    values = []
    rows = (one.unflatten(-1, (4, -1)).tolist() for one in (teacher, student))
    for t_box, s_box in zip(*rows, strict=True):
        total = 0.0
        for edges in zip(t_box, s_box, strict=True):
            powers = [[math.exp(z / temperature) for z in edge] for edge in edges]
            p, q = ([power / sum(edge) for power in edge] for edge in powers)
            total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        values.append(total / 4)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize('temperature', [1.0, 10.0])
def test_edge_divergence_against_loops(temperature):
    torch.manual_seed(0)
    teacher, student = 3 * torch.randn(2, 3, 4 * 5, dtype=torch.float64)
    expected = loops_edge_divergence(student, teacher, temperature)
    torch.testing.assert_close(edge_divergence(student, teacher, temperature), expected)


def test_edge_divergence_by_hand():
    # One edge of two bins differs: p = (3/4, 1/4), q = (1/2, 1/2); the three others agree.
    teacher = torch.tensor([[math.log(3.0), 0.0, 5.0, 1.0, 0.0, 0.0, -2.0, 2.0]])
    student = teacher.clone()
    student[0, :2] = 0
    value = edge_divergence(student, teacher, 1.0)
    assert value.shape == (1, )
    assert value.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 4, rel=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_edge_divergence_of_half_precision_and_of_nothing(dtype):
    one, two = (20 * torch.randn(2, 6, 20)).to(dtype)
    value = edge_divergence(one, two)
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    nothing = torch.zeros(0, 20, requires_grad=True)
    edge_divergence(nothing, torch.zeros(0, 20)).sum().backward()
    assert nothing.grad.shape == (0, 20)


# The valuable localization region


def iou_and_diou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    iou = width * height / (sum(areas) - width * height)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0]))**2 + (max(a[3], b[3]) - min(a[1], b[1]))**2
    return iou, iou - center_distance(a, b) / diagonal


def center_distance(a, b):
    return ((a[0] + a[2] - b[0] - b[2]) / 2)**2 + ((a[1] + a[3] - b[1] - b[3]) / 2)**2


def loops_threshold(levels, box, topk):
    overlaps = []
    for level in levels:
        closest = sorted(level, key=lambda prior: center_distance(prior, box))[:topk]
        overlaps += [iou_and_diou(prior, box)[0] for prior in closest]
    mean = sum(overlaps) / len(overlaps)
    return mean + math.sqrt(sum((value - mean)**2 for value in overlaps) / (len(overlaps) - 1))


def loops_region(levels, boxes, topk=9, gamma=0.25):
    values = []
    thresholds = [loops_threshold(levels, box, topk) for box in boxes]
    for prior in [prior for level in levels for prior in level]:
        best = 0.0
        for box, threshold in zip(boxes, thresholds, strict=True):
            iou, diou = iou_and_diou(prior, box)
            if gamma * threshold <= diou < threshold:
                best = max(best, iou)
        values.append(best)
    return torch.tensor(values, dtype=torch.float64)


def test_region_of_one_object_by_hand():
    # Of threshold 0.8 and gamma 0.25: DIoU 1 is too good, 1/3 - 25/425 fits, and 0 is too far.
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    priors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [40.0, 0.0, 50.0, 10.0]])
    region = valuable_region(priors, box, torch.tensor([0.8]))
    torch.testing.assert_close(region, torch.tensor([0.0, 1 / 3, 0.0]))
    assert not valuable_region(priors, box, torch.tensor([0.8]), gamma=0.5).any()  # 0.27 < 0.4


# Detectors

made = functools.cache(families.detector)


def detector(family: str, size: int = 8):
    return copy.deepcopy(made(family, size))


def gfl_pair(size: int = 16, teacher: dict | None = None, **settings):
    teacher = detector('gfl', size) if teacher is None else teacher
    model = build(distill(detector('gfl'), teacher, ld=dict(type='mmkd.LD', **settings)))
    with torch.no_grad():  # a random teacher is sure of nothing; this one has opinions
        for parameter in model.mmkd.teacher.model.bbox_head.gfl_reg.parameters():
            parameter.mul_(20)
    return model


def batch(model, items=(2, 3), seed: int = 0) -> dict:
    torch.manual_seed(seed)
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 60, 120]], num_classes=CLASSES, num_items=list(items))
    return model.data_preprocessor(data, True)


def distillation(losses: dict) -> dict:
    return {name.removeprefix('ld.'): value for name, value in losses.items() if name.startswith('ld.')}


def teach_itself(model) -> None:
    """Make a student its own teacher, in all that training changes."""
    theirs = model.mmkd.teacher.model
    theirs.load_state_dict({name: value for name, value in model.state_dict().items()
                            if not name.startswith('mmkd.')})
    model.backbone.eval()


def reached(model, loss) -> set[str]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    return {name.split('.')[1] if name.startswith('bbox_head') else 'trunk'
            for (name, _), gradient in zip(named, gradients, strict=True)
            if gradient is not None and bool(gradient.any())}


def test_a_step():
    model = gfl_pair(kd_weight=10.0)
    losses = model(**batch(model), mode='loss')
    terms = distillation(losses)
    assert set(terms) == {'loss_main', 'loss_vlr', 'loss_kd'}
    assert all(torch.isfinite(term) and term > 0 for term in terms.values()), terms
    boxes, classes = {'trunk', 'reg_convs', 'gfl_reg', 'scales'}, {'trunk', 'cls_convs', 'gfl_cls'}
    assert reached(model, terms['loss_main']) == reached(model, terms['loss_vlr']) == boxes
    assert reached(model, terms['loss_kd']) == classes
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())
    assert not any(module.training for module in model.mmkd.teacher.model.modules())


def test_terms_of_no_weight_are_left_out():
    model = gfl_pair()
    assert set(distillation(model(**batch(model), mode='loss'))) == {'loss_main', 'loss_vlr', 'loss_kd'}
    model.mmkd.methods['ld'].weight = model.mmkd.methods['ld'].kd_weight = 0.0
    assert set(distillation(model(**batch(model), mode='loss'))) == {'loss_vlr'}


def test_the_region_of_features_by_hand():
    # The best prior of the object has IoU 1/2, those of the second level 1/3 and, outside the image, 1.
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    priors = [torch.tensor([[0.0, 0.0, 20.0, 10.0], [10.0, 0.0, 20.0, 10.0], [0.0, 0.0, 50.0, 10.0]]),
              torch.tensor([[0.0, 0.0, 30.0, 10.0], [0.0, 0.0, 10.0, 10.0]])]
    valid = [torch.tensor([True, True, True]), torch.tensor([True, False])]
    regions = region_around_objects(priors, valid, box)
    assert [region.tolist() for region in regions] == [[True, False, False], [True, False]]
    assert not any(region.any() for region in region_around_objects(priors, valid, box[:0]))


def test_features_against_loops():
    model = gfl_pair(weight=0.0, vlr_weight=0.0, kd_weight=0.0, feature_weight=2.0)
    data = batch(model)
    own, taught = (one.neck(one.backbone(data['inputs'])) for one in (model, model.mmkd.teacher.model))
    head = model.bbox_head
    sizes = [level.shape[-2:] for level in own]
    priors, valid = head.get_anchors(
        sizes, [sample.metainfo for sample in data['data_samples']], device='cpu')
    expected = 0.0
    for level, (s, t) in enumerate(zip(own, taught, strict=True)):
        errors = []
        for image, sample in enumerate(data['data_samples']):
            boxes = sample.gt_instances.bboxes
            iou = [bbox_overlaps(anchors, boxes) * flags[:, None]
                   for anchors, flags in zip(priors[image], valid[image], strict=True)]
            best = torch.cat(iou).amax(dim=0)
            for index, row in enumerate(iou[level]):
                if any(one > top / 2 for one, top in zip(row, best, strict=True)):
                    y, x = divmod(index, s.shape[3])
                    errors += [(s[image, :, y, x] - t[image, :, y, x]).square().mean()]
        expected += 2 * sum(errors) / max(len(errors), 1)
    losses = distillation(model(**data, mode='loss'))
    assert set(losses) == {'loss_feature'} and expected > 0
    torch.testing.assert_close(losses['loss_feature'], expected, rtol=1e-4, atol=1e-6)
    assert reached(model, losses['loss_feature']) == {'trunk'}


def test_features_of_other_channels_get_a_convolution():
    teacher = detector('gfl', 16)
    teacher.neck.out_channels = 64
    teacher.bbox_head.update(in_channels=64, feat_channels=64)
    model = gfl_pair(teacher=teacher, feature_weight=2.0)
    (connectors, ) = model.mmkd.methods['ld'].connectors
    assert all(connector.weight.shape == (64, 32, 1, 1) for connector in connectors)
    model(**batch(model), mode='loss')['ld.loss_feature'].backward()
    assert any(connector.weight.grad.any() for connector in connectors)
    assert all(connector.weight.grad is not None for connector in connectors)


def test_a_student_like_its_teacher_has_no_loss():
    model = gfl_pair(size=8, kd_weight=1.0)
    teach_itself(model)
    for name, term in distillation(model(**batch(model), mode='loss')).items():
        assert term.item() == pytest.approx(0, abs=1e-6), name


def test_a_gradient_step_moves_the_student_towards_the_teacher():
    model = gfl_pair()
    data, before = batch(model), []
    optimizer = torch.optim.SGD(model.bbox_head.gfl_reg.parameters(), lr=1e-2)
    for _ in range(2):
        terms = distillation(model(**data, mode='loss'))
        before.append(terms)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert before[1]['loss_main'] < before[0]['loss_main'] and before[1]['loss_vlr'] < before[0]['loss_vlr']


def outputs(model, data: dict) -> tuple:
    """Head outputs of student and teacher."""
    features = model.extract_feat(data['inputs'])
    teacher = model.mmkd.teacher
    with torch.no_grad():
        taught = teacher.model(teacher.convert(data['inputs'], data['data_samples']))
    return model.bbox_head(features), taught


def test_main_region_against_mmdet_ld_head():
    model = gfl_pair()
    data = batch(model)
    own, taught = outputs(model, data)
    head = detector('gfl').bbox_head
    head.update(type='LDHead', loss_ld=dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10),
                train_cfg=detector('gfl').train_cfg)
    reference = MMDET_MODELS.build(head)
    gt, ignored, metas = unpack_gt_instances(data['data_samples'])
    expected = sum(reference.loss_by_feat(*own, gt, metas, taught[1], ignored)['loss_ld'])
    term = distillation(model(**data, mode='loss'))['loss_main']
    torch.testing.assert_close(term, expected, rtol=1e-5, atol=0)


def test_vlr_against_loops():
    """The second image is padded; with gamma and the threshold of ATSS."""
    model = gfl_pair()
    data = batch(model)
    own, taught = outputs(model, data)
    rows = [torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in one[1]], dim=1).detach().double()
            for one in (own, taught)]  # by image, then by level
    total = 0.0
    sizes = [level.shape[-2:] for level in own[0]]
    metas = [sample.metainfo for sample in data['data_samples']]
    anchors, flags = model.bbox_head.get_anchors(sizes, metas, device='cpu')
    assert not torch.cat(flags[1]).all()
    for image, sample in enumerate(data['data_samples']):
        valid = torch.cat(flags[image])
        levels = [level[flag].double().tolist()
                  for level, flag in zip(anchors[image], flags[image], strict=True)]
        region = loops_region(levels, sample.gt_instances.bboxes.double().tolist())
        assert 0 < (region > 0).sum() < len(region)
        divergence = loops_edge_divergence(rows[0][image][valid], rows[1][image][valid], 10.0) / 17
        total += 0.25 / 4 * (region * divergence).sum()
    term = distillation(model(**data, mode='loss'))['loss_vlr']
    torch.testing.assert_close(term.detach().double(), total, rtol=1e-4, atol=0)


def test_threshold_is_the_assigners():
    """Every prior that ATSS takes reaches the threshold, and the best ones below it are not taken."""
    model = gfl_pair()
    data = batch(model)
    levels = [level.new_zeros(2, CLASSES, *level.shape[-2:]) for level in outputs(model, data)[0][0]]
    priors, labels, _ = assign(model.bbox_head, levels, data['data_samples'])
    boxes = data['data_samples'][0].gt_instances.bboxes
    threshold = atss_threshold(priors, boxes, topk=9)
    overlaps = bbox_overlaps(torch.cat(priors), boxes)
    taken = torch.cat([level[0] for level in labels]) < CLASSES
    assert taken.any() and (overlaps >= threshold - 1e-6).any(dim=1)[taken].all()


def test_fixed_thresholds_of_other_assigners():
    student = detector('gfl')
    student.train_cfg.assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.4, neg_iou_thr=0.4, min_pos_iou=0)
    model = build(distill(student, detector('gfl', 16), ld=dict(type='mmkd.LD')))
    assert distillation(model(**batch(model), mode='loss'))['loss_vlr'] > 0


def test_normalize_divides_by_the_weights_in_the_region():
    model = gfl_pair()
    data = batch(model)
    plain = distillation(model(**data, mode='loss'))
    model.mmkd.methods['ld'].normalize = True
    normed = distillation(model(**data, mode='loss'))
    own, _ = outputs(model, data)
    _, labels, _ = assign(model.bbox_head, own[0], data['data_samples'])
    scores = torch.cat([level.sigmoid().amax(dim=1).flatten() for level in own[0]])
    scores = scores[torch.cat([level.flatten() for level in labels]) < CLASSES]
    torch.testing.assert_close(normed['loss_main'], plain['loss_main'] / scores.sum())


def doubled(total, minimum=1e-6):
    return (2 * total).clamp(min=minimum)


def test_weights_are_averaged_over_ranks(monkeypatch):
    model = gfl_pair(normalize=True, kd_weight=1.0)
    data = batch(model)
    alone = distillation(model(**data, mode='loss'))
    monkeypatch.setattr('mmkd.models.methods.ld.mean_over_ranks', doubled)
    for name, term in distillation(model(**data, mode='loss')).items():
        torch.testing.assert_close(term, alone[name] / 2)


def test_classes_against_torch():
    model = gfl_pair(kd_weight=2.0, kd_temperature=3.0)
    data = batch(model)
    own, taught = outputs(model, data)
    _, labels, _ = assign(model.bbox_head, own[0], data['data_samples'])
    main = torch.cat([level.flatten() for level in labels]) < CLASSES
    s, t = (torch.cat([level.permute(0, 2, 3, 1).reshape(-1, CLASSES) for level in one[0]])[main] / 3
            for one in (own, taught))
    expected = 2 * 9 * F.kl_div(s.log_softmax(1), t.softmax(1), reduction='none').mean()
    torch.testing.assert_close(distillation(model(**data, mode='loss'))['loss_kd'], expected)


@pytest.mark.parametrize('normalize', [False, True])
def test_images_without_boxes(normalize):
    model = gfl_pair(kd_weight=1.0, feature_weight=1.0, normalize=normalize)
    losses = model(**batch(model, items=(0, 0)), mode='loss')
    assert all(term == 0 for term in distillation(losses).values())
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all()
               for p in model.parameters() if p.requires_grad)
    one = distillation(model(**batch(model, items=(0, 3)), mode='loss'))
    assert all(term > 0 and torch.isfinite(term) for term in one.values())


def test_two_teachers_are_averaged():
    model = gfl_pair()
    data = batch(model)
    single = distillation(model(**data, mode='loss'))
    model.mmkd.teachers.append(model.mmkd.teacher)
    for name, term in distillation(model(**data, mode='loss')).items():
        torch.testing.assert_close(term, single[name])


def pair(student: str | dict, teacher: str | dict, **settings):
    student, teacher = (detector(one) if isinstance(one, str) else one for one in (student, teacher))
    return build(distill(student, teacher, ld=dict(type='mmkd.LD', **settings)))


def test_what_cannot_be_compared_says_why():
    for student, teacher, role, head in (('retinanet', 'gfl', 'student', 'RetinaHead'),
                                         ('gfl', 'atss', 'teacher', 'ATSSHead'),
                                         ('faster_rcnn', 'faster_rcnn', 'student', 'StandardRoIHead')):
        with pytest.raises(MMKDError, match=f'which a GFLHead predicts; the {role} has a {head}'):
            pair(student, teacher)
    teacher = detector('gfl')
    teacher.bbox_head.reg_max = 8
    with pytest.raises(MMKDError, match='reg_max is 16 in the student and 8 in the teacher'):
        pair('gfl', teacher)
    teacher = detector('gfl')
    teacher.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    with pytest.raises(MMKDError, match='the levels have strides'):
        pair('gfl', teacher)


def test_wrong_settings_say_why():
    with pytest.raises(MMKDError, match='`temperature` of LD must be a number from 0.01 to 1000, not 0.0'):
        LD(temperature=0.0)
    with pytest.raises(MMKDError, match='LD learns from a teacher'):
        build(dict(type='mmkd.DetectorDistiller', student=detector('gfl'),
                   methods=dict(ld=dict(type='mmkd.LD'))))
    student = detector('gfl')
    student.train_cfg.assigner = dict(type='GridAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5)
    with pytest.raises(MMKDError, match='or MaxIoUAssigner, and the student.s is a GridAssigner'):
        pair(student, 'gfl')
    pair(student, 'gfl', vlr_weight=0.0)
