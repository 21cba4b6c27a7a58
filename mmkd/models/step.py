"""What methods and proxies see of a training step."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """What a method sees of one training step.

    Args:
        student: The student network.
        inputs: Its preprocessed batch ``(N, 3, H, W)``.
        data_samples: The samples of the batch.
        student_outputs: By spot, the list of what the student's calls gave.
        teacher_outputs: The same for each teacher; without gradient.
    """
    student: nn.Module
    inputs: Tensor
    data_samples: Sequence
    student_outputs: Mapping[str, list]
    teacher_outputs: Sequence[Mapping[str, list]]
