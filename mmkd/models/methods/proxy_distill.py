"""Distillation of logits through a proxy: the one equation behind KD and SHAKE."""
from collections.abc import Mapping

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..losses import kl_divergence
from .base import Method


@MODELS.register_module()
class ProxyDistill(Method):
    r"""Knowledge passes from teacher T to student S through a proxy P.

    .. math::
        L_{proxy}   &= b \, KL(sg(T) ‖ P) + c \, KL(sg(S) ‖ P) \\
        L_{student} &= d \, KL(sg(P) ‖ S)

    sg stops gradients and KL is :func:`~mmkd.models.losses.kl_divergence` at temperature τ, averaged over
    the samples of all ranks. Without a proxy, P is the teacher itself and only the last term is left.

    =====================  ======================  ===  ===  ===
    method                 proxy                    b    c    d
    =====================  ======================  ===  ===  ===
    KD                     none: the teacher        –    –    λ
    SHAKE (paper's text)   shadow head on student   1    λ    λ
    =====================  ======================  ===  ===  ===

    Args:
        proxy: Config of the proxy, or ``None``.
        temperature: τ.
        teacher_to_proxy: b.
        student_to_proxy: c, reversed distillation.
        proxy_to_student: d.
    """

    student_spots = ('cls_logits', )
    teacher_spots = ('cls_logits', )

    def __init__(self,
                 proxy: dict | None = None,
                 temperature: float = 4.0,
                 teacher_to_proxy: float = 1.0,
                 student_to_proxy: float = 1.0,
                 proxy_to_student: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise MMKDError(f'The temperature must be above 0, not {temperature}.')
        self.temperature = temperature
        self.teacher_to_proxy = teacher_to_proxy
        self.student_to_proxy = student_to_proxy
        self.proxy_to_student = proxy_to_student
        self.proxy = None
        if proxy is not None:
            self.proxy = MODELS.build(proxy)
            self.student_spots = (*self.student_spots, *self.proxy.student_spots)

    def connect(self, student: nn.Module, teacher, student_cfg: dict) -> None:
        teacher.check_same_classes(student)
        if student.roi_head.bbox_head.loss_cls.__class__.__name__ != 'CrossEntropyLoss' or getattr(
                student.roi_head.bbox_head.loss_cls, 'use_sigmoid', False):
            raise MMKDError(
                "The student's RoI head must classify with a softmax (CrossEntropyLoss without "
                'use_sigmoid) for its logits to be distilled.')
        if self.proxy is not None:
            self.proxy.connect(student, student_cfg)

    def forward(self, student: Mapping[str, list], teacher: Mapping[str, list]) -> dict[str, Tensor]:
        """See :meth:`Method.forward`; ``cls_logits`` are ``(R, K+1)`` for R boxes.

        Returns:
            dict: ``loss_student``; with a proxy also ``loss_proxy_teacher`` and ``loss_proxy_student``,
            and ``proxy_teacher_agreement`` and ``student_teacher_agreement``, the shares of samples on
            which the two have the same most likely class.
        """
        (s, ), (t, ) = student['cls_logits'], teacher['cls_logits']
        outputs = dict(student_teacher_agreement=_agreement(s, t))
        if self.proxy is None:
            outputs['loss_student'] = self._kl(t, s, self.proxy_to_student)
            return outputs
        p = self.proxy(student)
        outputs['proxy_teacher_agreement'] = _agreement(p, t)
        outputs['loss_student'] = self._kl(p.detach(), s, self.proxy_to_student)
        outputs['loss_proxy_teacher'] = self._kl(t, p, self.teacher_to_proxy)
        outputs['loss_proxy_student'] = self._kl(s.detach(), p, self.student_to_proxy)
        return outputs

    def _kl(self, target: Tensor, prediction: Tensor, weight: float) -> Tensor:
        values = kl_divergence(target, prediction, self.temperature)
        return weight * values.sum() / _mean_count(values)


def _mean_count(values: Tensor) -> Tensor:
    """Number of samples per rank, averaged over ranks, so that every sample counts the same."""
    count = values.new_tensor(float(len(values)))
    if get_world_size() > 1:
        all_reduce(count, op='mean')
    return count.clamp(min=1)


@torch.no_grad()
def _agreement(one: Tensor, other: Tensor) -> Tensor:
    same = (one.argmax(dim=-1) == other.argmax(dim=-1)).float()
    return same.sum() / max(len(same), 1)
