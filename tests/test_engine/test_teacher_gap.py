"""The teacher-student gap that the hook logs, against a straightforward computation."""
import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from mmdet.testing import demo_mm_inputs
from mmengine.runner import Runner, load_checkpoint

from mmkd.apis import prepare_config
from mmkd.engine.hooks import TeacherGapHook
from mmkd.errors import MMKDError
from mmkd.models.spots import Recorder, resolve_spot
from tests.helpers.families import CHANNELS, CLASSES, detector
from tests.helpers.tiny import build, distill, tiny_config


def test_gap_on_the_validation_set(digits, teacher_config, teacher_checkpoint, tmp_path):
    cfg = tiny_config(data=digits)
    cfg.model = distill(cfg.model, teacher_config, teacher_checkpoint, kd=dict(type='mmkd.KD'))
    cfg.custom_hooks = [dict(type='mmkd.TeacherGapHook')]
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(prepare_config(cfg))
    metrics = runner.val()
    logged = {name: runner.message_hub.get_scalar(f'val/{name}').current()
              for name in ('gap/kl', 'gap/agreement')}

    student, teacher = runner.model, runner.model.mmkd.teacher.model
    divergences, same = [], []
    with torch.no_grad():
        for batch in runner.val_dataloader:
            data = student.data_preprocessor(copy.deepcopy(batch), False)
            pyramids = [model.extract_feat(data['inputs']) for model in (student, teacher)]
            proposals = student.rpn_head.predict(pyramids[0], data['data_samples'], rescale=False)
            rois = bbox2roi([one.bboxes for one in proposals])
            s, t = (model.roi_head._bbox_forward(pyramid, rois)['cls_score']
                    for model, pyramid in zip((student, teacher), pyramids, strict=True))
            p, q = t.softmax(dim=1), s.softmax(dim=1)
            divergences.append((p * (p / q).log()).sum(dim=1))
            same.append(p.argmax(dim=1) == q.argmax(dim=1))
    assert logged['gap/kl'] == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-4)
    assert logged['gap/agreement'] == pytest.approx(torch.cat(same).float().mean().item(), abs=1e-6)
    assert 'coco/bbox_mAP' in metrics


def test_a_student_that_is_its_teacher_has_no_gap(digits, teacher_config, teacher_checkpoint, tmp_path):
    cfg = tiny_config('teacher', digits)
    cfg.model = distill(cfg.model, teacher_config, teacher_checkpoint, kd=dict(type='mmkd.KD'))
    cfg.custom_hooks = [dict(type='mmkd.TeacherGapHook')]
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(prepare_config(cfg))
    load_checkpoint(runner.model, teacher_checkpoint)
    runner.val()
    assert runner.message_hub.get_scalar('val/gap/kl').current() == pytest.approx(0, abs=1e-6)
    assert runner.message_hub.get_scalar('val/gap/agreement').current() == 1


def test_pairs_without_comparable_logits_are_refused_at_the_start(digits, tmp_path):
    cfg = tiny_config(data=digits)
    retinanet = detector('retinanet', 8)
    cfg.model.neck.out_channels = retinanet.neck.out_channels
    for part in (cfg.model.rpn_head, cfg.model.roi_head.bbox_head):
        part.in_channels = retinanet.neck.out_channels
    cfg.model.roi_head.bbox_roi_extractor.out_channels = retinanet.neck.out_channels
    cfg.model = distill(cfg.model, retinanet, pkd=dict(type='mmkd.PKD'))
    cfg.custom_hooks = [dict(type='mmkd.TeacherGapHook')]
    cfg.work_dir = str(tmp_path)
    with pytest.raises(MMKDError, match='cannot be compared'):
        Runner.from_cfg(prepare_config(cfg)).train()


def with_shared_extractor(family: str, size: int):
    """A detector with masks whose mask branch uses the boxes' extractor."""
    cfg = detector(family, size)
    if family == 'cascade_rcnn':
        masks = detector('mask_rcnn', size)
        cfg.roi_head.mask_head = masks.roi_head.mask_head
        cfg.test_cfg.rcnn.mask_thr_binary = 0.5
    stages = cfg.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.mask_size = 14
    cfg.roi_head.mask_roi_extractor = None
    cfg.roi_head.mask_head.roi_feat_size = 7
    cfg.roi_head.mask_head.in_channels = CHANNELS
    cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=7)
    return cfg


@pytest.mark.parametrize(('family', 'stages'), [('mask_rcnn', 1), ('cascade_rcnn', 3)])
def test_masks_that_share_the_extractor_of_boxes(family, stages):
    model = build(distill(with_shared_extractor(family, 8), with_shared_extractor(family, 16),
                         kd=dict(type='mmkd.KD')))
    data = demo_mm_inputs(1, [[3, 128, 128]], num_classes=CLASSES, num_items=[2], with_mask=True)
    runner, hook = SimpleNamespace(model=model.eval()), TeacherGapHook()
    hook.before_run(runner)
    hook.before_val_epoch(runner)
    hook.before_val_iter(runner, 0)
    with torch.no_grad():
        model.val_step(data)
    rois, outputs = (hook._recorder[spot] for spot in ('rois', 'cls_outputs'))
    assert len(outputs) == stages
    assert [len(boxes) for boxes in rois] == [len(scores) for scores, _ in outputs]
    hook.after_val_iter(runner, 0, data)
    metrics = {}
    hook.after_val_epoch(runner, metrics)
    assert metrics['gap/kl'] > 0


@pytest.mark.parametrize(('family', 'stages'), [('mask_rcnn', 1), ('cascade_rcnn', 3)])
def test_boxes_that_are_judged_in_training_are_none_of_masks(family, stages):
    model = build(with_shared_extractor(family, 8))
    data = model.data_preprocessor(
        demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=CLASSES, num_items=[2, 2], with_mask=True), True)
    points = {spot: resolve_spot(model, spot, 'student') for spot in ('rois', 'cls_logits')}
    with Recorder(model, points) as recorder:
        model.loss(data['inputs'], data['data_samples'])
    assert len(recorder['rois']) == stages
    assert [len(boxes) for boxes in recorder['rois']] == [len(logits) for logits in recorder['cls_logits']]


@pytest.mark.parametrize('part', ['data_preprocessor', 'backbone', 'roi_head'])
def test_no_hook_outlives_a_validation_step_that_fails(part, monkeypatch):
    model = build(distill(detector('faster_rcnn', 8), detector('faster_rcnn', 16),
                         kd=dict(type='mmkd.KD'))).eval()
    data = demo_mm_inputs(1, [[3, 128, 128]], num_classes=CLASSES, num_items=[2])
    runner, hook = SimpleNamespace(model=model), TeacherGapHook()
    hook.before_run(runner)
    hook.before_val_epoch(runner)

    def hooks():
        return [name for name, module in model.named_modules()
                if module._forward_hooks or module._forward_pre_hooks]

    before = hooks()

    def fail(*_, **__):
        raise RuntimeError('broken')

    hook.before_val_iter(runner, 0)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='broken'), torch.no_grad():
        patch.setattr(type(model.get_submodule(part)), 'forward' if part != 'roi_head' else 'predict', fail)
        model.val_step(data)
    assert hooks() == before

    hook.before_val_iter(runner, 0)
    with torch.no_grad():
        model.val_step(data)
    hook.after_val_iter(runner, 0, data)
    assert hooks() == before and 'predict' not in vars(model)
    metrics = {}
    hook.after_val_epoch(runner, metrics)
    assert metrics['gap/kl'] > 0
