"""Learning curves and detections."""
import json

import mmcv
import pytest
import torch
from mmengine.structures import InstanceData

from mmkd.experiments.pictures import draw_detections, is_correct, mean_curve, plot_curves, task_loss
from mmkd.experiments.runs import read_log
from tests.helpers.tiny import build, tiny_config


def test_task_loss_leaves_out_what_distilling_adds():
    record = {
        'loss': 5.0, 'loss_cls': 1.0, 'loss_rpn_bbox': 0.5, 'shake.loss_student': 3.5, 'lr': 0.1}
    assert task_loss(record) == 1.5
    classifier = {'loss': 5.0, 'loss_cls': 1.5, 'loss_waiting': 0.0, 'shake.loss_student': 3.5, 'lr': 0.1}
    assert task_loss(classifier) == 1.5
    assert task_loss({'loss': 1.5, 'lr': 0.1}) == 1.5


def write_log(work_dir, *records):
    folder = work_dir / 'run/vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(record) + '\n' for record in records))


def test_curves_are_drawn_over_the_steps_that_all_seeds_have(tmp_path):
    for seed, steps in enumerate([(25, 50), (25, 50, 75)]):
        write_log(tmp_path / f'student{seed}',
                  *(dict(loss=1.0, loss_cls=1.0 + seed, step=step) for step in steps),
                  {'coco/bbox_mAP': 0.5, 'step': 1})
    logs = [read_log(tmp_path / f'student{seed}') for seed in (0, 1)]
    assert mean_curve([log.train for log in logs], task_loss) == ([25, 50], [1.5, 1.5])
    plot_curves(tmp_path / 'curves.png', dict(student=logs))
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(('label', 'bbox', 'correct'), [
    (3, [0, 0, 10, 8], True), (5, [0, 0, 10, 10], False), (3, [0, 6, 10, 16], False)])
def test_detection_is_correct_by_class_and_place(label, bbox, correct):
    detection = InstanceData(labels=torch.tensor([label]), bboxes=torch.tensor([bbox], dtype=torch.float32))
    truth = InstanceData(labels=torch.tensor([3]), bboxes=torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    assert is_correct(detection, truth).tolist() == [correct]
    assert is_correct(detection, truth[:0]).tolist() == [False]
    assert is_correct(detection[:0], truth).tolist() == []


def test_detections_are_drawn_beside_the_ground_truth(digits, tmp_path):
    cfg = tiny_config(data=digits)
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.dump(tmp_path / 'student.py')
    model = build(cfg.model)
    meta = dict(dataset_meta=dict(classes=tuple('0123456789')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'student.pth')
    student = ('student', tmp_path / 'student.py', tmp_path / 'student.pth')
    draw_detections(tmp_path / 'detections.png', [student], {}, num_images=2, score_thr=0.0)
    picture = mmcv.imread(str(tmp_path / 'detections.png'))
    columns, rows = 2, 2
    assert picture.shape == (24 + rows * 164, columns * 164, 3)
    image = mmcv.imread(f'{digits}/val/000001.png').astype(int)
    truth, student = (picture[24:184, left:left + 160].astype(int) - image for left in (0, 164))
    for difference, (channel, others) in ((truth, (1, [0, 2])), (student, (2, [0, 1]))):
        changed = abs(difference).max(axis=-1) > 40
        assert 100 < changed.sum() < 160 * 160 / 2
        # Boxes are green where they are right and red elsewhere; the labels beside them are gray.
        assert difference[changed][:, channel].mean() > difference[changed][:, others].mean() + 10
