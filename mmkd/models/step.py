"""What methods and proxies read of a training step."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """What was recorded in one training step.

    Args:
        student: The student network.
        inputs: The preprocessed batch of the student, ``(N, 3, H, W)``.
        data_samples: The samples of the batch.
        student_outputs: By spot, a list with the output of every call in the student.
        teacher_outputs: For every teacher, its outputs by spot, as for the student; without gradient.
        results: What several methods need and only the first one computes, by any key.
    """
    student: nn.Module
    inputs: Tensor
    data_samples: Sequence
    student_outputs: Mapping[str, list]
    teacher_outputs: Sequence[Mapping[str, list]]
    results: dict[Any, Any] = field(default_factory=dict)
