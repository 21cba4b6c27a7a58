"""Boxes of two-stage detectors against loops."""
import copy
import functools
import math

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules

from mmkd.errors import MMKDError
from tests.helpers import families
from tests.helpers.families import CLASSES
from tests.helpers.tiny import build, distill, losses_and_step
from tests.test_models.test_methods.test_bckd import giou, retina_box

made = functools.cache(families.detector)


def pair(student='faster_rcnn', teacher='faster_rcnn', mapping=None, balance='none', teacher_head=None,
         classes=CLASSES, **settings):
    teacher_cfg = copy.deepcopy(made(teacher, 16, classes))
    if teacher_head:
        teacher_cfg.roi_head.bbox_head.update(teacher_head)
    cfg = distill(copy.deepcopy(made(student)), teacher_cfg, box=dict(
        type='mmkd.BoxDistill', balance=balance, **settings))
    if mapping:
        cfg['teacher']['class_mapping'] = mapping
    model = build(cfg)
    with torch.no_grad():  # a random teacher is sure of nothing; this one has opinions
        for name, parameter in model.mmkd.teacher.model.roi_head.named_parameters():
            if name.endswith(('fc_cls.weight', 'fc_reg.weight')):
                parameter.mul_(30)
    return model


def batch(model, items=(2, 3), seed: int = 0) -> dict:
    torch.manual_seed(seed)
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 100, 120]], num_classes=CLASSES, num_items=list(items))
    return model.data_preprocessor(data, True)


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def decoded(deltas, roi, stds):
    return retina_box([delta * std for delta, std in zip(deltas, stds, strict=True)], roi)


def encoded(box, roi, stds):
    width, height = roi[2] - roi[0], roi[3] - roi[1]
    center = [((box[i] + box[i + 2]) - (roi[i] + roi[i + 2])) / 2 for i in range(2)]
    deltas = [center[0] / width, center[1] / height,
              math.log((box[2] - box[0]) / width), math.log((box[3] - box[1]) / height)]
    return [delta / std for delta, std in zip(deltas, stds, strict=True)]


def loops(step, stage, loss, sample_weight, student_stds, teacher_stds, mapping=range(CLASSES)):
    """Return the loss of a cascade stage from the outputs of both heads."""
    rois = step.student_outputs['rois'][stage].double().tolist()
    outputs = step.student_outputs['cls_outputs'][stage], step.teacher_outputs[0]['cls_outputs'][stage]
    (_, student), (logits, teacher) = (
        [value.detach().double().tolist() for value in values[:2]] for values in outputs)
    labels = [0] * len(rois)
    if sample_weight == 'foreground':
        labels = step.student_outputs['cls_targets'][stage][0][1].tolist()
    total = weights = 0.0
    for roi, s, t, row, label in zip(rois, student, teacher, logits, labels, strict=True):
        probabilities = softmax(row)
        weight, k = 1 - probabilities[-1], probabilities.index(max(probabilities[:-1]))
        if sample_weight == 'foreground':
            weight, k = float(label < CLASSES), label
        if weight:
            s = s if len(s) == 4 else s[4 * k:4 * k + 4]
            t = t if len(t) == 4 else t[4 * mapping[k]:4 * mapping[k] + 4]
            box = decoded(t, roi[1:], teacher_stds)
            if loss == 'giou':
                distance = 1 - giou(decoded(s, roi[1:], student_stds), box)
            else:
                targets = encoded(box, roi[1:], student_stds)
                distance = sum(abs(a - b) for a, b in zip(s, targets, strict=True))
            total, weights = total + weight * distance, weights + weight
    return total / weights


STDS = (0.1, 0.1, 0.2, 0.2)


@pytest.mark.parametrize('sample_weight', ['teacher', 'foreground'])
@pytest.mark.parametrize('loss', ['giou', 'l1'])
def test_against_loops(loss, sample_weight):
    model = pair(weight=2.0, loss=loss, sample_weight=sample_weight)
    losses, step = losses_and_step(model, 'box', batch(model))
    expected = loops(step, 0, loss, sample_weight, STDS, STDS)
    assert expected > 0.01
    assert losses['box.loss_box'].item() == pytest.approx(2 * expected, rel=1e-3)


@pytest.mark.parametrize('loss', ['giou', 'l1'])
def test_other_coders_classes_and_branches(loss):
    """The teacher has more classes in another order, another coder, and one box for all classes."""
    mapping = [3, 0, 1]
    model = pair(mapping=mapping, classes=4, loss=loss)
    losses, step = losses_and_step(model, 'box', batch(model))
    expected = loops(step, 0, loss, 'teacher', STDS, STDS, mapping)
    assert losses['box.loss_box'].item() == pytest.approx(expected, rel=1e-3)
    stds = (0.05, 0.05, 0.1, 0.1)
    coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=stds)
    model = pair(teacher_head=dict(reg_class_agnostic=True, bbox_coder=coder), loss=loss)
    losses, step = losses_and_step(model, 'box', batch(model))
    expected = loops(step, 0, loss, 'teacher', STDS, stds)
    assert losses['box.loss_box'].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('teacher', ['cascade_rcnn', 'faster_rcnn'])
def test_stages_of_a_cascade(teacher):
    model = pair('cascade_rcnn', teacher)
    losses, step = losses_and_step(model, 'box', batch(model))
    stds = [STDS, (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    stages = 3 if teacher == 'cascade_rcnn' else 1
    expected = sum(weight * loops(step, stage, 'giou', 'teacher', stds[stage], stds[stage])
                   for stage, weight in enumerate([1.0, 0.5, 0.25][:stages]))
    assert losses['box.loss_box'].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('loss', ['giou', 'l1'])
def test_a_step_and_a_student_that_is_its_own_teacher(loss):
    model = pair(loss=loss, balance='gradient')
    losses = model(**batch(model), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())
    gradient = torch.autograd.grad(model(**batch(model), mode='loss')['box.loss_box'],
                                   model.roi_head.bbox_head.fc_reg.weight)[0]
    assert gradient.any()
    model = build(distill(copy.deepcopy(made('faster_rcnn')), copy.deepcopy(made('faster_rcnn')), box=dict(
        type='mmkd.BoxDistill', loss=loss)))
    model.mmkd.teacher.model.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith('mmkd.')})
    model.backbone.eval()
    assert model.mmkd.methods['box'].is_balanced
    assert model(**batch(model), mode='loss')['box.loss_box'] < 1e-4


def test_images_without_objects():
    model = pair(sample_weight='foreground')
    loss = model(**batch(model, (0, 0)), mode='loss')['box.loss_box']
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize(('student', 'teacher', 'settings', 'said'), [
    ('retinanet', 'retinanet', {}, 'the student is a DistilledRetinaNet; for dense detectors, use BCKD'),
    ('faster_rcnn', 'retinanet', {}, 'the teacher is a RetinaNet'),
    ('faster_rcnn', 'faster_rcnn', dict(loss='l2'), "loss. must be 'giou' or 'l1'")])
def test_what_cannot_be_compared_is_told(student, teacher, settings, said):
    register_all_modules()
    with pytest.raises(MMKDError, match=said):
        pair(student, teacher, **settings)
