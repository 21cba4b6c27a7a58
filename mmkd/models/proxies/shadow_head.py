"""The shadow head of SHAKE: a cheap proxy between the teacher and the student."""
import copy
from collections.abc import Mapping

from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS


@MODELS.register_module()
class ShadowHead(BaseModule):
    """A second classification head on the student (SHAKE, ``placement='student'``, the paper's text).

    It reads the same features as the student's own head, and its gradient flows into the student's
    backbone. It starts from its own random weights.

    Args:
        placement: ``'student'``. The released form, on the teacher's features, is not there yet.
        tower: ``'head'`` builds all of the student's classification head anew (its convolutions and
            fully connected layers, without box regression); ``'fc_only'`` builds only the last
            classifier, on the student's own last vectors.
    """

    def __init__(self, placement: str = 'student', tower: str = 'head') -> None:
        super().__init__()
        if placement != 'student':
            raise MMKDError(f"ShadowHead knows placement='student', not {placement!r}.")
        if tower not in ('head', 'fc_only'):
            raise MMKDError(f"ShadowHead knows tower='head' and tower='fc_only', not {tower!r}.")
        self.tower = tower

    @property
    def student_spots(self) -> tuple[str, ...]:
        return ('cls_features', ) if self.tower == 'head' else ('cls_embedding', )

    def connect(self, student: nn.Module, student_cfg: dict) -> None:
        """Build the head after the student's.

        Args:
            student: The student detector.
            student_cfg: Its config.
        """
        if self.tower == 'fc_only':
            own = student.roi_head.bbox_head.fc_cls
            self.head = nn.Linear(own.in_features, own.out_features)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
            return
        cfg = copy.deepcopy(student_cfg['roi_head']['bbox_head'])
        cfg['with_reg'] = False
        for branch in ('num_reg_convs', 'num_reg_fcs'):
            if branch in cfg:
                cfg[branch] = 0
        try:
            self.head = MMDET_MODELS.build(cfg)
        except (AssertionError, TypeError) as error:
            raise MMKDError(
                f"The student's {cfg['type']} cannot be built without box regression ({error}); use "
                "tower='fc_only' for the shadow head.") from None

    def forward(self, student: Mapping[str, list[Tensor]]) -> Tensor:
        """Return the proxy's logits ``(R, K+1)`` for R boxes.

        Args:
            student: What was recorded of the student, by spot.
        """
        (features, ) = student[self.student_spots[0]]
        return self.head(features) if self.tower == 'fc_only' else self.head(features)[0]
