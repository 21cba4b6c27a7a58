"""BCKD: boxes as the heads themselves decode them, and losses against loops."""
import copy
import functools
import math
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope

from mmkd.errors import MMKDError
from mmkd.models.methods.boxes import decoded_boxes, giou_distance, has_quality, require_boxes
from tests.helpers import families
from tests.helpers.families import CLASSES
from tests.helpers.tiny import build, distill, losses_and_step
from tests.helpers.two_processes import run_in_two_processes, step_twice

HEADS = dict(
    retinanet='retinanet/retinanet_r50_fpn_1x_coco.py',
    fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    fcos_normalized='fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    atss='atss/atss_r50_fpn_1x_coco.py',
    gfl='gfl/gfl_r50_fpn_1x_coco.py',
    paa='paa/paa_r50_fpn_1x_coco.py',
    tood='tood/tood_r50_fpn_1x_coco.py',
    tood_anchors='tood/tood_r50_fpn_anchor-based_1x_coco.py',
    vfnet='vfnet/vfnet_r50_fpn_1x_coco.py',
    ddod='ddod/ddod_r50_fpn_1x_coco.py',
    autoassign='autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    fsaf='fsaf/fsaf_r50_fpn_1x_coco.py',
    free_anchor='free_anchor/freeanchor_r50_fpn_1x_coco.py',
    nas_fcos='nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py',
    centernet='centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py',
    yolof='yolof/yolof_r50-c5_8xb8-1x_coco.py',
    rtmdet='rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    yolox='yolox/yolox_tiny_8xb8-300e_coco.py')
WITH_QUALITY = {'fcos', 'fcos_normalized', 'atss', 'paa', 'ddod', 'autoassign', 'nas_fcos'}


def stock(path: str) -> ConfigDict:
    return Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / path).model


def small_head(name: str):
    model = stock(HEADS[name])
    head = copy.deepcopy(model.bbox_head)
    head.update(num_classes=1, in_channels=32, feat_channels=32, test_cfg=model.test_cfg, train_cfg=None)
    for norm_cfg in families._all_values(head, 'norm_cfg'):
        norm_cfg.type = norm_cfg.type.replace('SyncBN', 'BN')
    if name == 'yolof':
        head.pop('feat_channels')
    if name == 'tood':
        head.num_dcn = 0
    built = MMDET_MODELS.build(head).eval()
    built.init_weights()
    return built


def features(head) -> list[torch.Tensor]:
    strides = head.prior_generator.strides
    widths = [stride[0] if isinstance(stride, tuple) else stride for stride in strides]
    # Deformable convolutions need at least 3 positions.
    return [30 * torch.randn(2, 32, max(3, 128 // width), max(4, 96 // width)) for width in widths]


def in_one_order(boxes: torch.Tensor) -> torch.Tensor:
    key = boxes @ torch.tensor([1.0, 0.7, 0.3, 0.11])
    return boxes[key.argsort()]


@pytest.mark.parametrize('name', HEADS)
def test_boxes_are_those_of_the_heads_own_detections(name):
    """With one class, a head that keeps everything detects every box once."""
    torch.manual_seed(0)
    head = small_head(name)
    assert require_boxes(torch.nn.ModuleDict(dict(bbox_head=head)), 'BCKD', 'student') is head
    if hasattr(head, 'bbox_coder'):
        head.bbox_coder.clip_border = False  # of the image, which BCKD does not know
    head.with_score_voting = False
    levels = features(head)
    with torch.no_grad():
        outputs = head(levels)
        # PAA cannot detect without suppression.
        keep_all = ConfigDict(score_thr=-1.0, nms_pre=10**6, nms=dict(type='nms', iou_threshold=1.0),
                              max_per_img=-1)
        metas = [dict(img_shape=(128, 96), scale_factor=(1.0, 1.0))] * 2
        detected = head.predict_by_feat(
            *outputs, batch_img_metas=metas, cfg=keep_all, with_nms=name == 'paa')
        boxes = decoded_boxes(head, outputs)
        assert boxes.std(dim=0).min() > 1
        per_level = boxes.split([2 * priors * level[0, 0].numel() for priors, level in zip(
            head.prior_generator.num_base_priors, levels, strict=True)])
        for image in range(2):
            own = torch.cat([level.chunk(2)[image] for level in per_level])
            torch.testing.assert_close(in_one_order(own), in_one_order(detected[image].bboxes),
                                       rtol=1e-4, atol=1e-3)
        # In training, some heads return other units or more outputs.
        head.training = True
        torch.testing.assert_close(decoded_boxes(head, head(levels)), boxes)
    assert has_quality(head) == (name in WITH_QUALITY)


def test_giou_distance_of_boxes_with_swapped_edges():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    for other in ([0.0, 0.0, 10.0, 5.0], [10.0, 0.0, 0.0, 5.0], [0.0, 5.0, 10.0, 0.0]):
        torch.testing.assert_close(giou_distance(torch.tensor([other]), box), torch.tensor([0.5]))
    torch.testing.assert_close(giou_distance(torch.tensor([[10.0, 10.0, 20.0, 20.0]]), box),
                               torch.tensor([1.5]))  # the hull of 400 is half empty


# The method

made = functools.cache(families.detector)


def detector(family: str, size: int = 8, **head):
    model = copy.deepcopy(made(family, size))
    if head:
        model.bbox_head.update(head)
    return model


def pair(student, teacher, **settings):
    model = build(distill(student, teacher, bckd=dict(type='mmkd.BCKD', **settings)))
    with torch.no_grad():  # a random teacher is sure of nothing; this one has opinions
        for name, parameter in model.mmkd.teacher.model.bbox_head.named_parameters():
            if parameter.dim() == 4 and 'convs' not in name:
                parameter.mul_(2 if 'multi_level' in name else 20)  # YOLOX has the exponential of its outputs
    return model


def batch(model, items=(2, 3), seed: int = 0, size: int = 128) -> dict:
    torch.manual_seed(seed)
    shapes = [[3, size, size], [3, 60, size - 8]]
    data = demo_mm_inputs(2, shapes, num_classes=CLASSES, num_items=list(items))
    return model.data_preprocessor(data, True)


def seen_step(model, data):
    """Return the losses of a step, and the step as the method has seen it."""
    losses, step = losses_and_step(model, 'bckd', data)
    return {name.removeprefix('bckd.'): value for name, value in losses.items() if 'bckd.' in name}, step


def rows(levels, channels):
    """Return nested lists: level, then image, row, column and anchor in one."""
    return [level.detach().double().permute(0, 2, 3, 1).reshape(-1, channels).tolist() for level in levels]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def giou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def gfl_box(row, prior, stride, reg_max):
    center = ((prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2)
    distances = []
    for edge in range(4):
        bins = row[edge * (reg_max + 1):(edge + 1) * (reg_max + 1)]
        powers = [math.exp(value) for value in bins]
        distances.append(stride * sum(k * power for k, power in enumerate(powers)) / sum(powers))
    left, top, right, bottom = distances
    return center[0] - left, center[1] - top, center[0] + right, center[1] + bottom


def retina_box(row, prior, *_):
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    x, y = (prior[0] + prior[2]) / 2 + row[0] * width, (prior[1] + prior[3]) / 2 + row[1] * height
    half_width, half_height = (size * math.exp(z) / 2 for size, z in ((width, row[2]), (height, row[3])))
    return x - half_width, y - half_height, x + half_width, y + half_height


def loops(step, box_of, channels):
    """Return the losses of BCKD with weights 1, from the outputs of both heads."""
    head = step.student.bbox_head
    (student, ), (teacher, ) = step.student_outputs['cls_outputs'], step.teacher_outputs[0]['cls_outputs']
    instances, ignored, metas = unpack_gt_instances(step.data_samples)
    anchors, valid = head.get_anchors([level.shape[-2:] for level in student[0]], metas, 'cpu')
    priors = [level.tolist() for level in anchors[0]]
    targets = head.get_targets(anchors, valid, instances, metas, batch_gt_instances_ignore=ignored)
    labels, weights = targets[1:3] if targets[0][0].dim() == 3 else targets[:2]
    positives = sum(int((level < CLASSES).sum()) for level in labels)
    cls_loss = box_loss = 0.0
    for level, stride in enumerate(head.prior_generator.strides):
        outputs = [rows([maps[level]], width)[0] for maps, width in (
            (student[0], CLASSES), (teacher[0], CLASSES), (student[1], channels), (teacher[1], channels))]
        for index, (s, t, s_box, t_box) in enumerate(zip(*outputs, strict=True)):
            weight = weights[level].flatten()[index].item()
            prior = priors[level][index % len(priors[level])]
            difference = [abs(sigmoid(a) - sigmoid(b)) for a, b in zip(s, t, strict=True)]
            entropy = [-sigmoid(b) * math.log(sigmoid(a)) - (1 - sigmoid(b)) * math.log(sigmoid(-a))
                       for a, b in zip(s, t, strict=True)]
            cls_loss += weight * sum(d * e for d, e in zip(difference, entropy, strict=True))
            boxes = [box_of(box, prior, stride[0], getattr(head, 'reg_max', 0)) for box in (s_box, t_box)]
            box_loss += weight * max(difference) * (1 - giou(*boxes))
    return cls_loss / max(positives, 1), box_loss / max(positives, 1)


@pytest.mark.parametrize(('family', 'box_of', 'channels'), [
    ('gfl', gfl_box, 4 * 17), ('retinanet', retina_box, 4)], ids=['gfl', 'retinanet'])
def test_against_loops(family, box_of, channels):
    model = pair(detector(family), detector(family, 16), cls_weight=2.0, box_weight=3.0)
    losses, step = seen_step(model, batch(model, size=64))
    cls_loss, box_loss = loops(step, box_of, channels)
    assert losses['loss_cls'].item() == pytest.approx(2 * cls_loss, rel=1e-4)
    assert losses['loss_box'].item() == pytest.approx(3 * box_loss, rel=1e-4)


def test_quality_against_loops():
    model = pair(detector('fcos'), detector('atss', 16), cls_weight=0.0, box_weight=0.0, quality_weight=2.0)
    losses, step = seen_step(model, batch(model, size=64))
    assert set(losses) == {'loss_quality'}
    (student, ), (teacher, ) = step.student_outputs['cls_outputs'], step.teacher_outputs[0]['cls_outputs']
    total = weights = 0.0
    for level in range(5):
        columns = student[0][level].shape[-1]
        stride = step.inputs.shape[-1] / columns  # a position of the coarsest level is the whole image
        per_image = columns * student[0][level].shape[-2]
        outputs = (rows([maps[level]], width)[0] for maps, width in (
            (student[2], 1), (teacher[2], 1), (teacher[0], CLASSES)))
        for index, ((s, ), (t, ), scores) in enumerate(zip(*outputs, strict=True)):
            height, width = step.data_samples[index // per_image].img_shape[:2]
            row, column = divmod(index % per_image, columns)
            if (row + 0.5) * stride < height and (column + 0.5) * stride < width:
                p, q, weight = sigmoid(t), sigmoid(s), sigmoid(max(scores))
                total += weight * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
                weights += weight
    assert losses['loss_quality'].item() == pytest.approx(2 * total / weights, rel=1e-4)


ALIKE = ('retinanet', 'gfl', 'rtmdet', 'yolox', 'paa', 'tood', 'vfnet', 'autoassign', 'fsaf', 'yolof')
PAIRS = [*((name, name) for name in ALIKE), ('fcos', 'gfl'), ('atss', 'fcos')]


def reached(model, loss) -> set[str]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    return {name.split('.')[0] for (name, _), gradient in zip(named, gradients, strict=True)
            if gradient is not None and bool(gradient.any())}


@pytest.mark.parametrize(('student', 'teacher'), PAIRS, ids=['-'.join(names) for names in PAIRS])
def test_cell(student, teacher, monkeypatch):
    monkeypatch.setattr(families, '_stock', lambda family: stock(HEADS[family]))
    cfgs = [detector(student), detector(teacher, 16)]
    for cfg, size in zip(cfgs, (8, 16), strict=True):
        if student == 'yolof':
            del cfg.bbox_head.feat_channels
            cfg.neck.update(in_channels=8 * size, out_channels=32)
    model = pair(*cfgs, quality_weight=float({student, teacher} <= WITH_QUALITY))
    MessageHub.get_current_instance().update_info('epoch', 100)  # read by TOOD, which has two assigners
    if student == 'vfnet':  # its boxes are exponentials, which overflow in a random network
        with torch.no_grad():
            head = model.mmkd.teacher.model.bbox_head
            for layer in (head.vfnet_reg, head.vfnet_reg_refine):
                layer.weight.mul_(0.01)
    losses = model(**batch(model), mode='loss')
    total, log = model.parse_losses(losses)
    assert all(math.isfinite(value) for value in log.values()), log
    for name in ('bckd.loss_cls', 'bckd.loss_box'):
        assert losses[name] > 0
        assert reached(model, losses[name]) == {'backbone', 'neck', 'bbox_head'}
    total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())


@pytest.mark.parametrize('family', ['retinanet', 'gfl', 'fcos', 'atss', 'yolox'])
def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(family):
    head = dict(norm_on_bbox=True) if family == 'fcos' else {}
    quality = 1.0 if family in ('fcos', 'atss') else 0.0
    model = build(distill(detector(family, **head), detector(family, **head), bckd=dict(
        type='mmkd.BCKD', quality_weight=quality)))
    with torch.no_grad():
        for name, parameter in model.bbox_head.named_parameters():
            if parameter.dim() == 4 and 'convs' not in name:
                parameter.mul_(2 if family == 'yolox' else 20)
    model.mmkd.teacher.model.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith('mmkd.')})
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    losses, step = seen_step(model, batch(model, size=64))
    assert all(value < 1e-5 for value in losses.values()), losses
    boxes = [decoded_boxes(network.bbox_head, outputs) for network, outputs in (
        (step.student, step.student_outputs['cls_outputs'][0]),
        (model.mmkd.teacher.model, step.teacher_outputs[0]['cls_outputs'][0]))]
    torch.testing.assert_close(*boxes, rtol=1e-4, atol=1e-2)


def test_images_without_objects():
    model = pair(detector('gfl'), detector('gfl', 16))
    losses, _ = seen_step(model, batch(model, (0, 0)))
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())


def test_several_teachers_are_averaged():
    cfg = distill(detector('gfl'), detector('gfl', 16), bckd=dict(type='mmkd.BCKD'))
    cfg['teacher'] = [cfg['teacher'], copy.deepcopy(cfg['teacher'])]
    model = build(cfg)
    data = batch(model)
    both, step = seen_step(model, data)
    method = model.mmkd.methods['bckd']
    student, = step.student_outputs['cls_outputs']
    single = [method._compare(step, student, teacher, outputs['cls_outputs'][0])
              for teacher, outputs in zip(method.teachers, step.teacher_outputs, strict=True)]
    for name in ('loss_cls', 'loss_box'):
        torch.testing.assert_close(both[name], (single[0][name] + single[1][name]) / 2)


@pytest.mark.parametrize(('student', 'teacher', 'settings', 'said'), [
    ('faster_rcnn', 'faster_rcnn', {}, 'the student has a StandardRoIHead. For two-stage .* use BoxDistill'),
    ('gfl', 'faster_rcnn', {}, 'the teacher has a StandardRoIHead'),
    ('gfl', 'retinanet', {}, 'anchors per location'),
    ('gfl', 'gfl', dict(quality_weight=1.0), 'centerness or an IoU .* the student has a GFLHead'),
    ('fcos', 'gfl', dict(quality_weight=1.0), 'the teacher has a GFLHead'),
    ('gfl', 'gfl', dict(box_weight=-1.0), 'box_weight. must be')])
def test_what_cannot_be_compared_is_told(student, teacher, settings, said):
    with pytest.raises(MMKDError, match=said):
        build(distill(detector(student), detector(teacher, 16), bckd=dict(type='mmkd.BCKD', **settings)))


def worker(rank: int, folder: str) -> None:
    init_default_scope('mmdet')
    model = pair(detector('gfl'), detector('gfl', 16))
    step_twice(model, functools.partial(batch_of_rank, rank), 'gfl', folder, rank)


def batch_of_rank(rank: int, model, seed: int) -> dict:
    return batch(model, (2, 3) if rank else (0, 1), seed)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tmp_path):
    run_in_two_processes(worker, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
