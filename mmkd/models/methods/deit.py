"""The distillation token of DeiT."""
import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..losses import kl_divergence
from ..proxies.heads import classification_loss
from ..spots import logit_layout
from ..step import Step
from .base import Method

CLASS_TOKEN, DISTILLATION_TOKEN = 'head.layers.head', 'head.layers.head_dist'


@MODELS.register_module()
class DeiT(Method):
    r"""A vision transformer's second token learns from the teacher (Touvron et al., ICML 2021, section 4).

    .. math::
        L_{hard} &= (1-λ) \, CE(S_{class}, Y) + λ \, CE(S_{token}, argmax_k T_k) \\
        L_{soft} &= (1-λ) \, CE(S_{class}, Y) + λ \, KL(T ‖ S_{token})

    The student is MMPretrain's ``DistilledVisionTransformer`` under its ``DeiTClsHead``, which averages the
    logits of the two tokens; that is right for inference, so the average's own loss is left out here and
    the class token has its loss in ``loss_class``. The checkpoint is the stock network's.

    Args:
        hard: Whether the teacher's most likely class is the token's label, or all its probabilities.
        weight: λ; by default 0.5 with hard labels and 0.1 with soft ones, as in the paper.
        temperature: τ of soft labels; 3 in the paper.
    """

    student_task = 0.0
    task_losses = ('loss_class', )

    def __init__(self, hard: bool = True, weight: float | None = None, temperature: float = 3.0) -> None:
        super().__init__()
        self.hard = hard
        self.weight = (0.5 if hard else 0.1) if weight is None else weight
        if not 0 <= self.weight <= 1:
            raise MMKDError(f"DeiT's weight must lie between 0 and 1, not {self.weight}.")
        self.temperature = temperature

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        names = dict(student.named_modules())
        if CLASS_TOKEN not in names or DISTILLATION_TOKEN not in names:
            raise MMKDError(
                f'DeiT needs a student with a distillation token: a DistilledVisionTransformer under a '
                f'DeiTClsHead, not {type(getattr(student, "head", student)).__name__}.')
        if not teachers:
            raise MMKDError('DeiT learns from a teacher: give `teacher` a config and a checkpoint.')
        self.layout = logit_layout(student, 'student')
        for teacher in teachers:
            teacher.require_logits(self.layout)
        self.student_spots = (CLASS_TOKEN, DISTILLATION_TOKEN)
        self.teacher_spots = ('cls_outputs', )
        # The head says so in every step of training; with this method it is not true.
        warnings.filterwarnings('ignore', message='MMPretrain cannot train the distilled version DeiT')

    def forward(self, step: Step) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Returns:
            dict: ``loss_class``, ``loss_token`` (the mean over teachers), and ``token_teacher_agreement``,
            the share of images on which the token has the teacher's most likely class.
        """
        of_class, of_token = (step.student_outputs[spot][0] for spot in self.student_spots)
        taught = [self.layout.logits(seen['cls_outputs'])[0] for seen in step.teacher_outputs]
        losses = [self._token_loss(of_token, t) for t in taught]
        return dict(
            loss_class=(1 - self.weight) * classification_loss(self.layout, step, [of_class]),
            loss_token=self.weight * sum(losses) / len(losses),
            token_teacher_agreement=(of_token.argmax(dim=1) == taught[0].argmax(dim=1)).float().mean())

    def _token_loss(self, s: Tensor, t: Tensor) -> Tensor:
        if self.hard:
            return nn.functional.cross_entropy(s.float(), t.argmax(dim=1))
        return kl_divergence(s, t, self.temperature).mean()
