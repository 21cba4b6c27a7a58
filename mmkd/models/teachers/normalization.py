"""Converting a batch that was prepared for one network into the batch that another network expects."""
from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import MMKDError
from ..spots import is_classifier


class BatchConverter:
    """Re-normalizes the student's preprocessed batch for the teacher.

    Mean, standard deviation, channel order, padding value and size divisor are read from the two data
    preprocessors. So both networks get the same pixels, after the same augmentation.

    Args:
        student: The data preprocessor of the student.
        teacher: The data preprocessor of the teacher.

    Raises:
        MMKDError: If the normalization of one of them is unknown.
    """

    keep_size = False
    """Whether the batch keeps the student's height and width, instead of being padded for the teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        for role, preprocessor in (('student', student), ('teacher', teacher)):
            if not hasattr(preprocessor, '_enable_normalize'):
                raise MMKDError(
                    f"The {role}'s data preprocessor {type(preprocessor).__name__} is neither an "
                    'ImgDataPreprocessor nor a ClsDataPreprocessor, so images cannot be converted between '
                    'the two networks.')
        self.swap_channels = _swaps_channels(student) != _swaps_channels(teacher)
        student_mean, student_std = _statistics(student)
        teacher_mean, teacher_std = _statistics(teacher)
        if self.swap_channels:
            student_mean, student_std = student_mean.flip(0), student_std.flip(0)
        self.scale = student_std / teacher_std
        self.shift = (student_mean - teacher_mean) / teacher_std
        self.same_statistics = bool((self.scale == 1).all() and (self.shift == 0).all())
        self.divisor = teacher.pad_size_divisor
        self.pad_value = float(teacher.pad_value)
        self.same_padding = (student.pad_size_divisor == teacher.pad_size_divisor
                             and student.pad_value == teacher.pad_value)

    def __call__(self, inputs: Tensor, img_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Convert a batch.

        Args:
            inputs: The student's batch ``(N, 3, H, W)``, normalized and padded.
            img_shapes: ``(height, width)`` of every image inside its padding.

        Returns:
            Tensor: The teacher's batch ``(N, 3, H', W')``; the same tensor if nothing differs.
        """
        if self.swap_channels:
            inputs = inputs.flip(1)
        if not self.same_statistics:
            self.scale, self.shift = self.scale.to(inputs), self.shift.to(inputs)  # copied once
            inputs = inputs * self.scale + self.shift
        if self.same_statistics and self.same_padding:
            return inputs
        return self._pad(inputs, img_shapes)

    def _pad(self, inputs: Tensor, img_shapes: Sequence[tuple[int, int]]) -> Tensor:
        height, width = inputs.shape[-2:]
        if self.keep_size:
            inputs = inputs.clone()
        else:
            size = [ceil(max(shape[axis] for shape in img_shapes) / self.divisor) * self.divisor
                    for axis in (0, 1)]
            # Negative padding crops, and only padding is cropped.
            inputs = F.pad(inputs, (0, size[1] - width, 0, size[0] - height), value=self.pad_value)
        for image, (height, width) in zip(inputs, img_shapes, strict=True):
            image[:, height:] = self.pad_value
            image[:, :, width:] = self.pad_value
        return inputs


def image_shapes(model: nn.Module, inputs: Tensor, data_samples: Sequence) -> list[tuple[int, int]]:
    """Return the height and width of every image of a batch inside its padding, in pixels.

    For classifiers, padding is a part of the image, because after Mixup and CutMix it cannot be distinguished
    from content.

    Args:
        model: The network that the batch is for.
        inputs: The batch ``(N, 3, H, W)``.
        data_samples: Its samples.
    """
    if is_classifier(model):
        return [tuple(inputs.shape[-2:])] * len(inputs)
    return [sample.img_shape for sample in data_samples]


def _swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether images, which are loaded as BGR, become RGB; MMPretrain and MMEngine name this differently."""
    return bool(getattr(preprocessor, '_channel_conversion', False) or getattr(preprocessor, 'to_rgb', False))


def _statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    if not preprocessor._enable_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    mean, std = preprocessor.mean.cpu().float(), preprocessor.std.cpu().float()
    return mean.expand(3, 1, 1), std.expand(3, 1, 1)
