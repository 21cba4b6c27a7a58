"""KL divergence of softmax logits."""
import math

import pytest
import torch
from torch.nn import functional as F

from mmkd.models.losses import kl_divergence


def test_kl_of_two_classes_by_hand():
    # p = (3/4, 1/4) and q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    value = kl_divergence(torch.zeros(1, 2), teacher)
    assert value.shape == (1, )
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_kl_against_torch(temperature):
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 7, 11, dtype=torch.float64)
    expected = F.kl_div(
        F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1),
        reduction='none').sum(1) * temperature**2
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), expected)


def test_kl_moves_the_student_toward_the_teacher():
    teacher = torch.tensor([[4.0, 0.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    kl_divergence(student, teacher).sum().backward()
    assert student.grad[0, 0] < 0 < student.grad[0, 1]


def test_kl_gradient_at_high_temperature_is_the_difference_of_logits():
    # Hinton et al.: for large tau the gradient of one sample tends to (z - v) / K with centered logits.
    v = torch.tensor([[0.3, -0.1, -0.2]], dtype=torch.float64)
    z = torch.tensor([[-0.2, 0.1, 0.1]], dtype=torch.float64, requires_grad=True)
    kl_divergence(z, v, temperature=1e4).sum().backward()
    torch.testing.assert_close(z.grad, ((z - v) / 3).detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_kl_computes_in_float32_on_half_precision_input(dtype):
    torch.manual_seed(0)
    one, two = (30 * torch.randn(2, 5, 9)).to(dtype)
    value = kl_divergence(one, two, 4.0)
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    torch.testing.assert_close(value, kl_divergence(one.float(), two.float(), 4.0))


def test_empty_kl_has_a_gradient():
    student = torch.zeros(0, 5, requires_grad=True)
    kl_divergence(student, torch.zeros(0, 5)).sum().backward()
    assert student.grad.shape == (0, 5)
