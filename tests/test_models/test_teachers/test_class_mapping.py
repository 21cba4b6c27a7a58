"""The teacher's classes in the order of the student's."""
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample

from mmkd.errors import MMKDError
from mmkd.models.spots import LogitLayout
from mmkd.models.teachers import ClassMapping, Teacher
from tests.helpers.tiny import tiny_config

IMAGES = dict(activation='softmax', of_images=True)
BOXES = dict(activation='softmax')
DENSE = dict(activation='sigmoid', strides=(8, ), anchors=(2, ))


def mapping(kind: dict) -> ClassMapping:
    mapping = ClassMapping([2, 0])
    mapping.compare(LogitLayout(num_classes=2, **kind), LogitLayout(num_classes=3, **kind))
    return mapping


def test_outputs_of_classifiers():
    logits = torch.randn(4, 3)
    (mapped, ) = mapping(IMAGES).outputs([logits])
    assert torch.equal(mapped, logits[:, [2, 0]])


def test_outputs_of_two_stage_detectors_keep_the_background():
    logits = torch.randn(4, 4)
    ((mapped, boxes), ) = mapping(BOXES).outputs([(logits, 'boxes')])
    assert torch.equal(mapped, logits[:, [2, 0, 3]]) and boxes == 'boxes'


def test_logits_of_dense_detectors():
    level = torch.randn(1, 6, 2, 2)
    ((mapped, ), ) = mapping(DENSE).logits([[level]])
    assert torch.equal(mapped, level[:, [2, 0, 5, 3]])


def test_an_identity_changes_nothing():
    outputs, sample = [object()], DataSample()
    identity = ClassMapping()
    assert identity.is_identity and identity.maps_outputs
    assert identity.outputs(outputs) is outputs and identity.logits(outputs) is outputs
    identity.sample(sample)
    assert sample.keys() == []


def test_detections_of_other_classes_are_removed():
    sample = DetDataSample(pred_instances=InstanceData(
        labels=torch.tensor([0, 1, 2, 0]), scores=torch.tensor([0.4, 0.3, 0.2, 0.1])))
    ClassMapping([2, 0]).sample(sample)
    assert sample.pred_instances.labels.tolist() == [1, 0, 1]
    assert sample.pred_instances.scores.tolist() == torch.tensor([0.4, 0.2, 0.1]).tolist()


def test_scores_of_images():
    sample = DataSample().set_pred_score(torch.tensor([0.1, 0.6, 0.3]))
    ClassMapping([2, 0]).sample(sample)
    assert sample.pred_score.tolist() == torch.tensor([0.3, 0.1]).tolist()
    assert sample.pred_label.tolist() == [0]


@pytest.mark.parametrize('method', ['outputs', 'logits'])
def test_outputs_before_the_classes_were_compared_are_an_error(method):
    unbound = ClassMapping([2, 0])
    assert not unbound.maps_outputs
    with pytest.raises(MMKDError, match=r'call teacher\.require_logits'):
        getattr(unbound, method)([torch.randn(4, 3)])


def test_a_teacher_that_was_not_built_for_a_student_says_so():
    teacher = Teacher(dict(tiny_config('teacher').model), 'random')
    teacher.add_spots(['neck'])
    for call in (teacher.require_same_size, lambda: teacher(torch.zeros(1, 3, 64, 64), [], spots=['neck'])):
        with pytest.raises(MMKDError, match=r'call teacher\.build first'):
            call()
