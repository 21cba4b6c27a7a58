"""The final detections of a teacher on the student's batch."""
from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from ...errors import MMKDError
from ..spots.reuse import reused_features
from .teacher import Teacher


@torch.no_grad()
def detect(teacher: Teacher, inputs: Tensor, data_samples: Sequence,
           features: Sequence[Tensor]) -> list[InstanceData]:
    """Return a teacher's final detections, after non-maximum suppression, on the student's batch.

    Args:
        teacher: The teacher, a detector.
        inputs: The student's preprocessed batch ``(N, 3, H, W)``.
        data_samples: Its samples.
        features: The outputs of the teacher's backbone and neck for this batch.

    Returns:
        list: For every image, ``bboxes`` ``(n, 4)`` as (x1, y1, x2, y2) in pixels of the student's batch,
        ``scores`` ``(n,)``, ``labels`` ``(n,)`` in the student's classes and, if the teacher has them,
        ``masks``.

    Raises:
        MMKDError: If the teacher does not predict boxes with scores and classes, or needs a text.
    """
    if hasattr(teacher.model, 'language_model') and not all('text' in sample for sample in data_samples):
        raise MMKDError(f'The teacher {type(teacher.model).__name__} detects what a text names; add the text '
                        "to the samples of the training data, and 'text' to the meta_keys of PackDetInputs.")
    converted = teacher.convert(inputs, data_samples)
    size = tuple(converted.shape[-2:])
    samples = [_unscaled(sample, size) for sample in data_samples]
    with torch.autocast(inputs.device.type, enabled=False), reused_features(teacher.model, features):
        samples = teacher.model.predict(converted, samples, rescale=False)
    for sample in samples:
        if not all(field in sample.get('pred_instances', {}) for field in ('bboxes', 'scores', 'labels')):
            raise MMKDError(f'The teacher {type(teacher.model).__name__} does not predict boxes with scores '
                            'and classes; choose a detector of boxes.')
        teacher.class_mapping.sample(sample)
    return [sample.pred_instances for sample in samples]


def _unscaled(sample: DetDataSample, size: tuple[int, int]) -> DetDataSample:
    """Return a sample for an image of the batch: the size before augmentation has no meaning for it."""
    shape = sample.img_shape[:2]
    return DetDataSample(metainfo={
        **sample.metainfo, 'img_shape': shape, 'ori_shape': shape, 'scale_factor': (1.0, 1.0),
        'batch_input_shape': size, 'pad_shape': size})
