"""Wrong labels for a teacher's training."""
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from mmkd.datasets import WrongLabels
from mmkd.errors import MMKDError
from tests.helpers.tiny import REPO


def test_labels_of_listed_classes_change_places():
    transform = TRANSFORMS.build(dict(type='mmkd.WrongLabels', classes=[2, 4, 3]))
    assert [transform(dict(gt_label=label))['gt_label'] for label in range(6)] == [0, 1, 4, 2, 3, 5]
    labels = transform(dict(gt_bboxes_labels=np.arange(6)))['gt_bboxes_labels']
    assert labels.tolist() == [0, 1, 4, 2, 3, 5] and labels.dtype == np.int64
    assert transform(dict(gt_bboxes_labels=np.zeros(0, dtype=np.int64)))['gt_bboxes_labels'].shape == (0, )


@pytest.mark.parametrize('classes', [[1], [1, 2, 1]])
def test_classes_that_make_no_sense(classes):
    with pytest.raises(MMKDError, match='at least two classes'):
        WrongLabels(classes)


@pytest.mark.parametrize('name', ['classifier', 'retinanet'])
def test_only_the_training_of_the_teacher_has_wrong_labels(name):
    folder = REPO / 'configs/examples/wrong_labels'
    for role, wrong in (('teacher', True), ('student', False)):
        cfg = Config.fromfile(folder / f'{name}_{role}.py')
        for loader in ('train_dataloader', 'val_dataloader'):
            types = [step['type'] for step in cfg[loader].dataset.pipeline]
            assert ('mmkd.WrongLabels' in types) == (wrong and loader == 'train_dataloader')
