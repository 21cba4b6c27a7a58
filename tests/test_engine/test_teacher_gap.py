"""The teacher-student gap that the hook logs, against a straightforward computation."""
import copy

import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.runner import Runner, load_checkpoint

from mmkd.apis import prepare_config
from mmkd.errors import MMKDError
from tests.families import detector
from tests.tiny import distil, tiny_config


def test_gap_on_the_validation_set(digits, teacher_config, teacher_checkpoint, tmp_path):
    cfg = tiny_config(data=digits)
    cfg.model = distil(cfg.model, teacher_config, teacher_checkpoint, kd=dict(type='mmkd.KD'))
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
    cfg.model = distil(cfg.model, teacher_config, teacher_checkpoint, kd=dict(type='mmkd.KD'))
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
    cfg.model = distil(cfg.model, retinanet, pkd=dict(type='mmkd.PKD'))
    cfg.custom_hooks = [dict(type='mmkd.TeacherGapHook')]
    cfg.work_dir = str(tmp_path)
    with pytest.raises(MMKDError, match='cannot be compared'):
        Runner.from_cfg(prepare_config(cfg)).train()
