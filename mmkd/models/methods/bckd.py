"""BCKD: Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat
from ..losses import bernoulli_kl_divergence
from ..losses.quality_focal import quality_focal_divergence
from ..reduction import mean_over_ranks
from ..spots import logit_layout
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers, mean_over_teachers
from .boxes import decoded_boxes, giou_distance, has_quality, require_boxes
from .dense_targets import flat, has_known_targets, locations


@MODELS.register_module()
class BCKD(Method):
    r"""The scores and the boxes of a dense detector imitate the teacher's at all locations.

    .. math::
        L_{cls} &= \frac{λ_{cls}}{N} \sum_i c_i \sum_k |p_{ik} - q_{ik}| \, BCE(p_{ik}, q_{ik}), \\
        L_{box} &= \frac{λ_{box}}{N} \sum_i c_i \, \max_k |p_{ik} - q_{ik}| \, (1 - GIoU(T_i, S_i))

    with p and q the probabilities of the teacher and of the student for every class, and T and S their
    decoded boxes (Yang et al., ICCV 2023). The weights c are those of the student's classification loss, and
    N is the number of priors that its assigner gives to objects, averaged over ranks (FCOS: the sum of their
    centerness targets). Where the targets of a head depend on its predictions (TOOD, PAA, RTMDet, YOLOX, …),
    c is 1 inside the image, and N is the sum of the teacher's highest scores.

    The released code leaves out a level of the pyramid if it has no object, which is not done here.

    Student and teacher may have heads of different kinds, as long as their logits belong to the same
    locations: boxes are compared in pixels.

    Args:
        cls_weight: The weight λ_cls.
        box_weight: The weight λ_box; 4 in the released config for GFL.
        quality_weight: The weight of KL(T‖S) of the centerness (FCOS, ATSS, AutoAssign) or IoU (PAA, DDOD)
            that a head predicts, the mean over locations weighted by the teacher's highest score. The paper
            has no such term.
    """

    def __init__(self, cls_weight: NonNegativeFloat = 1.0, box_weight: NonNegativeFloat = 4.0,
                 quality_weight: NonNegativeFloat = 0.0) -> None:
        super().__init__()
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.quality_weight = quality_weight
        self.student_spots = self.teacher_spots = ('cls_outputs', )
        self.teachers: list[Teacher] = []

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers('BCKD', teachers)
        head = require_boxes(student, 'BCKD', 'student')
        self.layout = logit_layout(student, 'student')
        if self.layout.activation != 'sigmoid':
            raise MMKDError('BCKD compares probabilities of sigmoid heads; the student classifies with a '
                            'softmax.')
        self._check_quality(head, 'student')
        for teacher in teachers:
            self._check_quality(require_boxes(teacher.model, 'BCKD', 'teacher'), 'teacher')
            teacher.require_logits(self.layout)
        self.teachers = list(teachers)

    def _check_quality(self, head: nn.Module, role: str) -> None:
        if self.quality_weight and not has_quality(head):
            raise MMKDError('quality_weight is for heads that predict a centerness or an IoU besides their '
                            f'scores, such as those of FCOS and ATSS; the {role} has a '
                            f'{type(head).__name__}.')

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of scores, boxes and quality.

        Args:
            step: The outputs that were recorded in the training step.

        Returns:
            dict: ``loss_cls``, ``loss_box`` and ``loss_quality``, as far as their weights are above 0; means
            over teachers.
        """
        (student, ) = step.student_outputs['cls_outputs']
        return mean_over_teachers([
            self._compare(step, student, teacher, outputs['cls_outputs'][0])
            for teacher, outputs in zip(self.teachers, step.teacher_outputs, strict=True)])

    def _compare(self, step: Step, student: Sequence, teacher: Teacher,
                 teacher_outputs: Sequence) -> dict[str, Tensor]:
        student_head, teacher_head = step.student.bbox_head, teacher.model.bbox_head
        student_logits, teacher_logits = (
            self.layout.logits([outputs])[0] for outputs in (student, teacher_outputs))
        with torch.no_grad():
            inside = self.layout.weights('uniform', [student], [teacher_logits], step)[0]
            teacher_probabilities = teacher_logits.sigmoid()
            difference = (teacher_probabilities - student_logits.sigmoid()).abs().amax(dim=-1)
            scores = teacher_probabilities.amax(dim=-1) * inside
            if has_known_targets(student_head):
                known = locations(student_head, student[0], step.data_samples)
                weights, normalizer = known.weights, known.normalizer
            else:
                weights, normalizer = inside, mean_over_ranks(scores.sum())
        losses = {}
        if self.cls_weight:
            divergence = quality_focal_divergence(student_logits, teacher_logits)
            losses['loss_cls'] = self.cls_weight * (weights * divergence).sum() / normalizer
        if self.box_weight:
            distance = giou_distance(
                decoded_boxes(student_head, student), decoded_boxes(teacher_head, teacher_outputs))
            losses['loss_box'] = self.box_weight * (weights * difference * distance).sum() / normalizer
        if self.quality_weight:
            divergence = bernoulli_kl_divergence(flat(student[2], 1), flat(teacher_outputs[2], 1))
            total = (scores * divergence).sum() / mean_over_ranks(scores.sum())
            losses['loss_quality'] = self.quality_weight * total
        return losses
