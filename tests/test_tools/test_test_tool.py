"""Evaluating students by tools/test.py."""
import pickle
import re

import pytest
import torch
from mmengine.config import Config

from tests.helpers.tiny import build


@pytest.fixture(scope='module')
def checkpoints(files, tmp_path_factory) -> dict[str, str]:
    """A student's weights, alone and with all that a distilling run keeps beside them."""
    folder = tmp_path_factory.mktemp('checkpoints')
    weights = build(Config.fromfile(files.distilling).model).state_dict()
    alone = {name: value for name, value in weights.items() if not name.startswith('mmkd.')}
    assert len(alone) < len(weights)
    paths = dict(student=str(folder / 'student.pth'), distilling=str(folder / 'epoch_1.pth'))
    torch.save(alone, paths['student'])  # bare weights, as some export them
    torch.save(dict(meta=dict(epoch=1), state_dict=weights, optimizer={}), paths['distilling'])
    return paths


@pytest.fixture
def evaluate(run, tmp_path):
    """Function that evaluates and returns the metrics and the predictions."""

    def evaluate(config, checkpoint, *options):
        out = tmp_path / 'predictions.pkl'
        ended = run('test.py', config, checkpoint, '--work-dir', tmp_path / 'work', '--out', out, *options)
        assert ended.code == 0, ended.err
        metrics = dict(re.findall(r'coco/(\w+): (-?[\d.]+)', ended.out))
        predictions = pickle.loads(out.read_bytes())
        out.unlink()
        return {name: float(value) for name, value in metrics.items()}, predictions

    return evaluate


def same_boxes(one, other) -> bool:
    return len(one) == len(other) and all(
        a['img_id'] == b['img_id'] and all(
            torch.equal(a['pred_instances'][key], b['pred_instances'][key])
            for key in ('bboxes', 'scores', 'labels')) for a, b in zip(one, other, strict=True))


def test_student_and_distilling_config_give_the_same(evaluate, files, checkpoints, tmp_path):
    metrics, predictions = evaluate(files.student, checkpoints['student'])
    assert {'bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s'} <= set(metrics)
    assert len(predictions) == 16
    assert sum(len(one['pred_instances']['bboxes']) for one in predictions) > 16

    # Neither the teacher nor its config are needed to evaluate the student.
    cfg = Config.fromfile(files.distilling)
    cfg.model.teacher = dict(config='gone.py', checkpoint='gone.pth')
    cfg.dump(tmp_path / 'distilling.py')
    other_metrics, other = evaluate(tmp_path / 'distilling.py', checkpoints['distilling'])
    assert other_metrics == metrics
    assert same_boxes(predictions, other)


def test_predictions_depend_on_the_checkpoint(evaluate, files, checkpoints, tmp_path):
    weights = torch.load(checkpoints['student'])
    weights['roi_head.bbox_head.fc_cls.bias'] += torch.arange(11.0)
    torch.save(weights, tmp_path / 'other.pth')
    _, predictions = evaluate(files.student, checkpoints['student'])
    _, other = evaluate(files.student, tmp_path / 'other.pth')
    assert not same_boxes(predictions, other)


def test_options_of_the_config(evaluate, files, checkpoints):
    _, predictions = evaluate(files.student, checkpoints['student'], '--cfg-options',
                              'test_dataloader.dataset.indices=3', 'model.test_cfg.rcnn.max_per_img=2')
    assert len(predictions) == 3
    assert {len(one['pred_instances']['bboxes']) for one in predictions} == {2}
    _, predictions = evaluate(files.distilling, checkpoints['distilling'], '--cfg-options',
                              'test_dataloader.dataset.indices=3',
                              'model.student.test_cfg.rcnn.max_per_img=2')
    assert {len(one['pred_instances']['bboxes']) for one in predictions} == {2}


def test_drawing_predictions(run, files, checkpoints, tmp_path):
    ended = run('test.py', files.student, checkpoints['student'], '--work-dir', tmp_path / 'work',
                '--show-dir', 'drawn', '--cfg-options', 'test_dataloader.dataset.indices=2')
    assert ended.code == 0, ended.err
    drawn = [path for path in (tmp_path / 'work').rglob('drawn/*') if path.suffix in ('.png', '.jpg')]
    assert len(drawn) == 2


def test_evaluation_leaves_the_work_dir_of_the_run_usable(run, files, checkpoints, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/epoch_1.pth').write_bytes(b'training goes on here')
    ended = run('test.py', files.student, checkpoints['student'], '--work-dir', tmp_path / 'work',
                '--cfg-options', 'test_dataloader.dataset.indices=2')
    assert ended.code == 0, ended.err
    assert (tmp_path / 'work/epoch_1.pth').read_bytes() == b'training goes on here'
    assert not (tmp_path / 'work/last_checkpoint').exists()
