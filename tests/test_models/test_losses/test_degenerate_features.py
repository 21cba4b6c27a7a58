"""Losses of degenerate features: a single sample, a single position, constants, zeros."""
import pytest
import torch
from mmengine.structures import InstanceData

from mmkd.models.methods import ZOO, FeatureDistill
from mmkd.registry import MODELS

structures = pytest.importorskip('mmdet.structures')

LOSSES = [entry.loss.__name__ for entry in ZOO.values() if issubclass(entry.cls, FeatureDistill)]
LEVELS = 2
NUM_SAMPLES = 8


def random(*shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


CASES = {
    'one position': (random(1, 4, 1, 1), random(1, 4, 1, 1).flip(1)),
    'one position of zeros': (torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1)),
    'one position against more': (random(1, 4, 1, 1), random(1, 4, 3, 3)),
    'one sample': (random(1, 4, 3, 3), random(1, 4, 3, 3).flip(1)),
    'zeros': (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)),
    'student of zeros': (torch.zeros(2, 4, 3, 3), random(2, 4, 3, 3)),
    'teacher of zeros': (random(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)),
    'constants': (torch.full((3, 4, 3, 3), 2.0), torch.full((3, 4, 3, 3), -1.0)),
    'constant student': (torch.full((3, 4, 3, 3), 2.0), random(3, 4, 3, 3)),
    'constant positions': (random(3, 4, 1, 1).expand(3, 4, 3, 3),
                           random(3, 4, 1, 1).flip(1).expand(3, 4, 3, 3)),
    'largest half': (65504 * random(2, 4, 3, 3).sign(), -65504 * random(2, 4, 3, 3).sign()),
}


def connected(kind, student, teacher):
    torch.manual_seed(0)
    levels = 1 if kind == 'CRDLoss' else LEVELS
    loss = MODELS.build(dict(type=f'mmkd.{kind}', weight=1.0))
    loss.build([tuple(student.shape[1:])] * levels, [tuple(teacher.shape[1:])] * levels)
    if loss.needs_train_labels:
        loss.set_train_labels([index % 2 for index in range(NUM_SAMPLES)])
    students = [student.clone().requires_grad_() for _ in range(levels)]
    samples = [
        structures.DetDataSample(
            gt_instances=InstanceData(bboxes=torch.tensor([[2.0, 2.0, 9.0, 9.0]])),
            metainfo=dict(sample_idx=index, batch_input_shape=(16, 16))) for index in range(len(student))]
    return loss, students, [teacher] * levels, samples


def check(value, loss, student):
    assert torch.isfinite(value)
    loss.zero_grad()
    value.backward()
    assert all(s.grad is None or s.grad.isfinite().all() for s in student)
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('kind', LOSSES)
def test_values_and_gradients_are_finite(kind, case):
    loss, student, teacher, samples = connected(kind, *CASES[case])
    check(loss(student, teacher, samples), loss, student)
    if loss.has_first_phase:
        check(loss.first_phase(student, teacher), loss, student)


@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('kind', LOSSES)
def test_one_chosen_sample_is_finite(kind, size):
    feature = random(3, 4, size, size)
    loss, student, teacher, samples = connected(kind, feature, feature.flip(1))
    choices = [torch.tensor([0.0, 1.0, 0.0])] * len(student)
    check(loss.masked(student, teacher, choices, samples), loss, student)
