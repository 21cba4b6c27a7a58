"""Wrong labels, to train a teacher that is bad on some classes."""
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from ..errors import MMKDError
from ..registry import TRANSFORMS
from ..settings import NonNegativeInt


@TRANSFORMS.register_module()
class WrongLabels(BaseTransform):
    """Replaces the labels of some classes by those of others of these classes.

    Every listed class gets the label of the next class in the list, and the last one that of the first. It
    belongs behind the transform that loads labels, and in front of the one that packs them.

    Args:
        classes: The indices of at least two classes.
    """

    def __init__(self, classes: Sequence[NonNegativeInt]) -> None:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise MMKDError(f'`classes` of WrongLabels must list at least two classes once, not {classes}.')
        self.classes = list(classes)
        self._wrong = dict(zip(classes, [*classes[1:], classes[0]], strict=True))

    def transform(self, results: dict) -> dict:
        """Replace ``gt_label`` of an image (MMPretrain), or ``gt_bboxes_labels`` (MMDetection)."""
        if 'gt_label' in results:
            results['gt_label'] = self._wrong.get(int(results['gt_label']), results['gt_label'])
        if 'gt_bboxes_labels' in results:
            labels = results['gt_bboxes_labels']
            results['gt_bboxes_labels'] = np.array(
                [self._wrong.get(int(label), int(label)) for label in labels], dtype=labels.dtype)
        return results
