"""The labels of samples, as SAKD reads them."""
from collections.abc import Sequence

import torch
from torch import Tensor

from ...spots import LogitLayout
from ...step import Step


def image_classes(step: Step, layout: LogitLayout) -> Tensor:
    """Return which classes the samples have, ``(N, K + 1)``; the last column is 1 for every sample."""
    classes = step.inputs.new_zeros(len(step.inputs), layout.num_classes + 1, dtype=torch.float32)
    classes[:, -1] = 1
    for row, sample in zip(classes, step.data_samples, strict=True):
        if not layout.of_images:
            row[sample.gt_instances.labels] = 1
        elif 'gt_score' in sample:
            row[sample.gt_score.argmax()] = 1
        else:
            row[sample.gt_label] = 1
    return classes


def image_targets(samples: Sequence, logits: Tensor) -> Tensor:
    """Return labels ``(N,)``, or probabilities ``(N, K)`` of mixed images."""
    if 'gt_score' in samples[0]:
        return torch.stack([sample.gt_score for sample in samples]).to(logits.device).float()
    return torch.cat([sample.gt_label for sample in samples]).to(logits.device)
