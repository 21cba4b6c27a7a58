"""How logits are laid out, weighted and averaged."""
import types

import pytest
import torch
from mmengine.registry import MODELS

from mmkd.errors import MMKDError
from mmkd.models.methods import KD
from mmkd.models.spots import LogitLayout, SampleMatch, check_comparable, logit_layout
from mmkd.models.step import Step
from mmkd.models.teachers import ClassMapping
from tests.helpers.families import detector

DENSE = LogitLayout('sigmoid', 2, strides=(8, 16), anchors=(3, 3))


def sample(height, width, boxes=()):
    boxes = torch.tensor(boxes, dtype=torch.float).reshape(-1, 4)
    return types.SimpleNamespace(img_shape=(height, width), gt_instances=types.SimpleNamespace(bboxes=boxes))


def maps(images=2, channels=6, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, channels, size // stride, size // stride, generator=generator)
            for stride in (8, 16)]


def test_order_of_flat_logits():
    levels = maps()
    (flat, ) = DENSE.logits([(levels, )])
    expected = [levels[level][image, 2 * anchor:2 * anchor + 2, row, column]
                for level, cells in ((0, 4), (1, 2)) for image in range(2)
                for row in range(cells) for column in range(cells) for anchor in range(3)]
    assert torch.equal(flat, torch.stack(expected))


def test_classes_are_selected_in_every_anchor():
    levels = maps()
    mapping = ClassMapping([1, 0])
    mapping.compare(DENSE, DENSE)
    ((selected, box), ) = mapping.outputs([(levels, 'boxes')])
    assert box == 'boxes'
    one_channel = [level[:, [1, 0, 3, 2, 5, 4]] for level in levels]
    for got, expected in zip(selected, one_channel, strict=True):
        assert torch.equal(got, expected)


def test_yolox_detects_by_class_times_objectness():
    layout = LogitLayout('sigmoid', 2, strides=(8, ), anchors=(1, ), reads=(0, 2))
    classes, objectness = 5 * torch.randn(1, 2, 3, 3), 5 * torch.randn(1, 1, 3, 3)
    (flat, ) = layout.logits([([classes], None, [objectness])])
    expected = (classes.sigmoid() * objectness.sigmoid()).permute(0, 2, 3, 1).reshape(-1, 2)
    torch.testing.assert_close(flat.sigmoid(), expected)


def test_joint_logits_stay_finite():
    layout = LogitLayout('sigmoid', 1, strides=(8, ), anchors=(1, ), reads=(0, 2))
    for classes, objectness in ((200.0, 200.0), (-200.0, -200.0), (200.0, -200.0)):
        levels = [torch.full((1, 1, 1, 1), value, requires_grad=True) for value in (classes, objectness)]
        (flat, ) = layout.logits([([levels[0]], None, [levels[1]])])
        flat.sum().backward()
        assert torch.isfinite(flat).all() and all(torch.isfinite(level.grad).all() for level in levels)


def weights(sample_weight, samples, levels, layout=DENSE):
    step = Step(None, torch.zeros(len(samples), 3, 32, 32), samples, {}, [])
    return layout.weights(sample_weight, [(levels, )], layout.logits([(levels, )]), step)[0]


def test_locations_in_the_padding_do_not_count():
    got = weights('uniform', [sample(32, 32), sample(16, 24)], maps())
    fine = torch.ones(2, 4, 4)
    fine[1, 2:] = 0
    fine[1, :, 3:] = 0
    coarse = torch.ones(2, 2, 2)
    coarse[1, 1:] = 0
    coarse[1, :, 1:] = 0  # its center at 24 lies outside
    expected = torch.cat([level.flatten().repeat_interleave(3) for level in (fine, coarse)])
    assert torch.equal(got, expected)


def test_foreground_is_inside_the_boxes():
    got = weights('foreground', [sample(32, 32, [[0, 0, 16, 8], [20, 20, 32, 32]]), sample(32, 32)], maps())
    fine = torch.zeros(2, 4, 4)
    fine[0, 0, :2] = 1
    fine[0, 2:, 2:] = 1
    fine[0, 2, 2] = 1  # center (20, 20), and the box begins there
    coarse = torch.zeros(2, 2, 2)
    coarse[0, 0, 0] = 0  # center (8, 8): the box ends there
    coarse[0, 1, 1] = 1
    expected = torch.cat([level.flatten().repeat_interleave(3) for level in (fine, coarse)])
    assert torch.equal(got, expected)


def test_the_teachers_weight_is_its_likeliest_class():
    levels = maps()
    got = weights('teacher', [sample(32, 32)] * 2, levels)
    (flat, ) = DENSE.logits([(levels, )])
    assert torch.equal(got, flat.max(dim=1).values.sigmoid())


def loss(sample_weight, student, teacher, samples, size=32):
    method = KD(temperature=2.0, sample_weight=sample_weight)
    method.layout, method.match = DENSE, SampleMatch(DENSE)
    step = Step(None, torch.zeros(len(samples), 3, size, size), samples,
                dict(cls_outputs=[(student, )]), [dict(cls_outputs=[(teacher, )])])
    return method(step)['loss_student']


@pytest.mark.parametrize('sample_weight', ['uniform', 'foreground', 'teacher'])
def test_the_loss_depends_neither_on_batch_size_nor_on_image_size(sample_weight):
    samples = [sample(32, 32, [[0, 0, 16, 16]]), sample(32, 32, [[8, 8, 32, 32]])]
    student, teacher = maps(seed=1), maps(seed=2)
    value = loss(sample_weight, student, teacher, samples)
    assert value > 0
    twice = loss(sample_weight, [level.repeat(2, 1, 1, 1) for level in student],
                 [level.repeat(2, 1, 1, 1) for level in teacher], samples * 2)
    torch.testing.assert_close(twice, value)
    # Each image beside a copy of itself.
    wide = [sample(64, 64, torch.cat([one.gt_instances.bboxes + torch.tensor([x, y, x, y])
                                      for x in (0, 32) for y in (0, 32)]).tolist()) for one in samples]
    tiled = loss(sample_weight, [level.repeat(1, 1, 2, 2) for level in student],
                 [level.repeat(1, 1, 2, 2) for level in teacher], wide, size=64)
    torch.testing.assert_close(tiled, value)


def test_no_foreground_gives_zero_with_a_gradient():
    student = [level.requires_grad_() for level in maps()]
    value = loss('foreground', student, maps(seed=2), [sample(32, 32)] * 2)
    value.backward()
    assert value == 0 and all(torch.isfinite(level.grad).all() for level in student)


def test_two_stage_foreground_are_the_boxes_with_an_object():
    layout = LogitLayout('softmax', 3)
    outputs = [(torch.randn(4, 4), )]
    labels = torch.tensor([0, 3, 2, 3])
    step = Step(None, None, [], dict(cls_targets=[((outputs[0][0], labels, None), {})]), [])
    (got, ) = layout.weights('foreground', outputs, layout.logits(outputs), step)
    assert got.tolist() == [1, 0, 1, 0]


def anchors(family='retinanet', **settings):
    cfg = detector(family)
    cfg.bbox_head.anchor_generator.update(settings)
    return logit_layout(MODELS.build(cfg), 'student')


@pytest.mark.parametrize(('settings', 'number'), [
    (dict(ratios=[2.0, 1.0, 0.5]), 1), (dict(ratios=[0.5, 1.0, 3.0]), 7), (dict(octave_base_scale=8), 1),
    (dict(base_sizes=[8, 16, 32, 64, 100]), 1), (dict(scale_major=False), 2), (dict(center_offset=0.5), 1)],
    ids=['order', 'ratios', 'scales', 'sizes', 'major', 'offset'])
def test_other_anchors_in_the_same_number_are_refused(settings, number):
    with pytest.raises(MMKDError, match=fr'of the 9 anchors at a location of stride .*, number {number} is '
                                        r'the box \(.*\) in the student and \(.*\) in the teacher'):
        check_comparable(anchors(), anchors(**settings))


def test_scales_that_a_config_rounds_are_the_same():
    check_comparable(anchors(), anchors(octave_base_scale=None, scales_per_octave=None,
                                        scales=[4.0, 5.04, 6.35]))


def test_a_single_anchor_stands_for_its_location():
    one = anchors('atss')
    assert one.base_anchors and set(one.anchors) == {1}
    check_comparable(one, anchors('atss', octave_base_scale=4))
    check_comparable(one, anchors('gfl'))
    check_comparable(one, logit_layout(MODELS.build(detector('fcos')), 'teacher'))
