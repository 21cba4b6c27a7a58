"""The distillation token of DeiT."""
import warnings
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import Fraction, Temperature
from ..losses import kl_divergence
from ..proxies.heads import classification_loss
from ..spots import logit_layout
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers

CLASS_TOKEN = 'head.layers.head'
DISTILLATION_TOKEN = 'head.layers.head_dist'


@MODELS.register_module()
class DeiT(Method):
    r"""A vision transformer's second token learns from the teacher (Touvron et al., ICML 2021, section 4).

    .. math::
        L_{hard} &= (1-λ) \, CE(S_{class}, Y) + λ \, CE(S_{token}, argmax_k T_k) \\
        L_{soft} &= (1-λ) \, CE(S_{class}, Y) + λ \, KL(T ‖ S_{token})

    The student is MMPretrain's ``DistilledVisionTransformer`` with a ``DeiTClsHead``, which averages the
    logits of the two tokens. The average is right for inference but not for training, so its loss is left
    out here, and the class token has its loss in ``loss_class``. The checkpoint is that of the stock network.

    Args:
        hard: Whether the token learns the teacher's most likely class, or all of the teacher's probabilities.
        weight: The weight λ; by default 0.5 with hard labels and 0.1 with soft ones, as in the paper.
        temperature: The temperature τ of soft labels; 3 in the paper.
    """

    student_task = 0.0
    task_losses = ('loss_class', )

    def __init__(self, hard: bool = True, weight: Fraction | None = None,
                 temperature: Temperature = 3.0) -> None:
        super().__init__()
        if weight is None:
            weight = 0.5 if hard else 0.1
        self.hard = hard
        self.weight = weight
        self.temperature = temperature

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        names = dict(student.named_modules())
        if CLASS_TOKEN not in names or DISTILLATION_TOKEN not in names:
            raise MMKDError(
                f'DeiT needs a student with a distillation token: a DistilledVisionTransformer under a '
                f'DeiTClsHead, not {type(getattr(student, "head", student)).__name__}.')
        check_teachers('DeiT', teachers)
        self.layout = logit_layout(student, 'student')
        for teacher in teachers:
            teacher.require_logits(self.layout)
        self.student_spots = (CLASS_TOKEN, DISTILLATION_TOKEN)
        self.teacher_spots = ('cls_outputs', )
        # The head warns of this in every training step; with this method it does not apply.
        warnings.filterwarnings('ignore', message='MMPretrain cannot train the distilled version DeiT')

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of both tokens.

        Args:
            step: The outputs that were recorded in the training step.

        Returns:
            dict: ``loss_class``; ``loss_token``, the mean over teachers; and ``token_teacher_agreement``, the
            share of images for which the token predicts the teacher's most likely class.
        """
        class_logits, token_logits = (step.student_outputs[spot][0] for spot in self.student_spots)
        teacher_logits = [self.layout.logits(outputs['cls_outputs'])[0] for outputs in step.teacher_outputs]
        losses = [self._token_loss(token_logits, logits) for logits in teacher_logits]
        agreement = token_logits.argmax(dim=1) == teacher_logits[0].argmax(dim=1)
        return dict(
            loss_class=(1 - self.weight) * classification_loss(self.layout, step, [class_logits]),
            loss_token=self.weight * sum(losses) / len(losses),
            token_teacher_agreement=agreement.float().mean())

    def _token_loss(self, token_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if self.hard:
            return F.cross_entropy(token_logits.float(), teacher_logits.argmax(dim=1))
        return kl_divergence(token_logits, teacher_logits, self.temperature).mean()
