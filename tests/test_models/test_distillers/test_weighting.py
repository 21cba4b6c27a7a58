"""The rule by which losses are weighted, by hand."""
import pytest
import torch

from mmkd.models.distillers.weighting import weighted_losses


def weigh(student=None, methods=None, student_task=None, scale=None, task_losses=None, proxy_losses=None):
    methods = methods or {}
    return weighted_losses(
        student or {},
        methods,
        {name: 1.0 for name in methods} | (student_task or {}),
        {name: 1.0 for name in methods} | (scale or {}),
        {name: () for name in methods} | (task_losses or {}),
        {name: () for name in methods} | (proxy_losses or {}))


def test_without_factors_nothing_changes():
    losses = dict(loss_cls=torch.tensor(2.0), acc=torch.tensor(50.0))
    assert weigh(losses, dict(kd=dict(loss_student=torch.tensor(3.0)))) == {
        'loss_cls': 2, 'acc': 50, 'kd.loss_student': 3}


def test_factors_of_the_students_task_multiply():
    losses = weigh(
        dict(loss_cls=torch.tensor(2.0), loss_bbox=[torch.tensor(1.0), torch.tensor(4.0)],
             acc=torch.tensor(50.0)),
        dict(a=dict(loss=torch.tensor(1.0)), b=dict(loss=torch.tensor(1.0))),
        student_task=dict(a=0.5, b=0.1))
    assert losses['loss_cls'].item() == pytest.approx(0.1)
    assert [level.item() for level in losses['loss_bbox']] == pytest.approx([0.05, 0.2])
    assert losses['acc'] == 50, 'not a loss'
    assert losses['a.loss'] == losses['b.loss'] == 1


def test_a_scale_is_for_distillation_and_not_for_values_to_log():
    losses = weigh({}, dict(a=dict(loss_student=torch.tensor(2.0), agreement=torch.tensor(0.5))),
                   scale=dict(a=0.25))
    assert losses == {'a.loss_student': 0.5, 'a.agreement': 0.5}


def test_task_losses_of_a_method_get_the_factors_of_the_others():
    losses = weigh(
        dict(loss=torch.tensor(2.0)),
        dict(shake=dict(loss_task=torch.tensor(2.0), loss_student=torch.tensor(2.0)),
             kd=dict(loss_student=torch.tensor(2.0))),
        student_task=dict(shake=0.0, kd=0.5), scale=dict(shake=0.25), task_losses=dict(shake=('loss_task', )))
    assert losses == {'loss': 0, 'shake.loss_task': 1, 'shake.loss_student': 0.5, 'kd.loss_student': 2}


def test_what_a_proxy_learns_by_is_not_scaled():
    losses = weigh(
        {}, dict(shake=dict(loss_proxy_task=torch.tensor(2.0), loss_student=torch.tensor(2.0))),
        student_task=dict(shake=0.5), scale=dict(shake=0.25), proxy_losses=dict(shake=('loss_proxy_task', )))
    assert losses == {'shake.loss_proxy_task': 2, 'shake.loss_student': 0.5}


def test_arguments_stay_as_they_are():
    student, method = dict(loss=torch.tensor(2.0)), dict(loss_student=torch.tensor(2.0))
    weigh(student, dict(a=method), student_task=dict(a=0.5), scale=dict(a=0.5))
    assert student == dict(loss=2) and method == dict(loss_student=2)
