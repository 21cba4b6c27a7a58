"""SAKD's multi-path routing: a sample passes through parts of the student and of the teacher."""
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import MMKDError
from .splitting import split

POOLED = -1
"""The position after a network's neck, where its stages have numbers from 1 on."""


class Adapter(nn.Module):
    """Gives one network's feature the shape of the other's.

    A 1×1 convolution and batch norm, or a linear layer.

    Args:
        given: Shape of a sample's feature, ``(C, H, W)`` or ``(C,)``.
        wanted: The same of the other network.
    """

    def __init__(self, given: Sequence[int], wanted: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Linear(given[0], wanted[0]) if len(given) == 1 else nn.Sequential(
            nn.Conv2d(given[0], wanted[0], 1, bias=False), nn.BatchNorm2d(wanted[0]))

    def forward(self, feature: Tensor, like: Tensor) -> Tensor:
        """Return the feature with the shape of ``like``; a map is resampled to its height and width."""
        feature = self.layers(feature)
        if feature.dim() == 4 and feature.shape[-2:] != like.shape[-2:]:
            shrinks = feature.shape[-1] > like.shape[-1]
            feature = nn.functional.adaptive_avg_pool2d(feature, like.shape[-2:]) if shrinks else (
                nn.functional.interpolate(feature, size=like.shape[-2:], mode='nearest'))
        return feature


class Routing(nn.Module):
    r"""Runs student and teacher side by side, and lets every sample change over after every spot.

    At a spot with the choice a, with adapters A,

    .. math:: f_T \leftarrow (1 - a) A_{S→T}(f_S) + a f_T, \\
              f_S \leftarrow (1 - a) f_S + a A_{T→S}(f_T)

    and in the end :math:`z = (1 - a_K) z_S + a_K z_T`.

    Args:
        positions: For every spot, the numbers of the student's and of the teacher's stage, or :data:`POOLED`.
        shapes: For every spot, the shapes of a sample's feature in both networks.
    """

    def __init__(self, positions: Sequence[tuple[int, int]],
                 shapes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        super().__init__()
        self.positions = tuple(positions)
        self.to_teacher = nn.ModuleList(Adapter(own, other) for own, other in shapes)
        self.to_student = nn.ModuleList(Adapter(other, own) for own, other in shapes)

    def forward(self, student: nn.Module, teacher, images: Tensor, taught: Tensor | None,
                teacher_logits: Tensor, choices: Tensor) -> Tensor:
        """Return routed logits.

        The student's parameters and batch statistics are left alone: gradients reach the adapters and the
        choices only.

        Args:
            student: The student classifier.
            teacher (Teacher): The teacher; frozen, in eval mode.
            images: The student's preprocessed batch ``(N, 3, H, W)``.
            taught: The teacher's feature at the first spot; without spots not needed.
            teacher_logits: The teacher's logits ``(N, K)``, taken where there are no spots.
            choices: ``(N, spots + 1)``, the last for the logits.

        Returns:
            Tensor: ``(N, K)``.
        """
        own = {name: parameter.detach() for name, parameter in student.named_parameters()
               if not name.startswith('mmkd.')}
        with _in_eval(student):
            path = _Path(student)
            z = torch.func.functional_call(
                path, {f'network.{name}': value for name, value in own.items()},
                (self, teacher, images, taught, teacher_logits, choices))
        return z

    def run(self, student: nn.Module, teacher, images: Tensor, taught: Tensor | None,
            teacher_logits: Tensor, choices: Tensor) -> Tensor:
        """Run both networks; see :meth:`forward`."""
        mine, other = _Walk(student), _Walk(teacher.model)
        with torch.no_grad():  # nothing before the first spot is trained here
            x = mine.go(mine.start(images), self.positions[0][0] if self.positions else None)
        if not self.positions:
            return _mixed(choices[:, -1], x, teacher_logits)
        y = other.place(taught, self.positions[0][1])
        for index, (in_student, in_teacher) in enumerate(self.positions):
            if index:
                x, y = mine.go(x, in_student), other.go(y, in_teacher)
            choice = choices[:, index]
            x, y = (_mixed(choice, x, self.to_student[index](y, x)),
                    _mixed(choice, self.to_teacher[index](x, y), y))
        logits, = teacher.class_mapping.outputs([other.go(y, None)])
        return _mixed(choices[:, -1], mine.go(x, None), logits)


class _Path(nn.Module):
    """Holds the student for one call, so that its parameters can be replaced for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, routing: Routing, *args) -> Tensor:
        return routing.run(self.network, *args)


class _Walk:
    """Runs a classifier from one position to another."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parts = split(model.backbone)
        self.position = 0

    def start(self, images: Tensor) -> Any:
        return self.parts.stem(images)

    def place(self, feature: Any, position: int) -> Any:
        self.position = position
        return feature

    def go(self, feature: Any, position: int | None) -> Any:
        """Go on to the end of a stage, to :data:`POOLED`, or to the logits (``None``)."""
        last = len(self.parts.stages)
        target = last if position in (None, POOLED) else position
        if self.position != POOLED:
            for _, stage in self.parts.stages[self.position:target]:
                feature = stage(feature)
            self.position = target
            if position in (None, POOLED):
                feature = self.parts.tail(feature)
                feature = (self.model.neck(feature) if self.model.with_neck else feature)[-1]
                self.position = POOLED
        return feature if position is not None else self.model.head((feature, ))


def _mixed(choice: Tensor, without: Tensor, chosen: Tensor) -> Tensor:
    choice = choice.to(chosen.dtype).reshape(-1, *[1] * (chosen.dim() - 1))
    return (1 - choice) * without + choice * chosen


@contextmanager
def _in_eval(student: nn.Module):
    modes = [(module, module.training) for name, module in student.named_modules()
             if name.split('.')[0] != 'mmkd']
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def positions_of(spots: Sequence[str], stages: int, role: str) -> list[int]:
    """Return where spots stand: numbers of stages, and :data:`POOLED` for ``features``.

    Args:
        spots: As the user names them.
        stages: How many stages the network has.
        role: How messages call it.

    Raises:
        MMKDError: If a spot has no place between stages.
    """
    positions = []
    for spot in spots:
        if spot == 'stages':
            positions += range(1, stages + 1)
        elif spot == 'last_stage':
            positions.append(stages)
        elif spot == 'features':
            positions.append(POOLED)
        elif spot.startswith('stage') and spot[5:].isdigit() and 1 <= int(spot[5:]) <= stages:
            positions.append(int(spot[5:]))
        else:
            raise MMKDError(f"SAKD routes at the ends of stages; the {role}'s spot {spot!r} is none of "
                            f"'stages', 'stage1' to 'stage{stages}', 'last_stage' and 'features'.")
    order = [stages + 1 if position == POOLED else position for position in positions]
    if order != sorted(set(order)):
        raise MMKDError(f"SAKD needs the {role}'s spots in the order of the network, each once, not "
                        f'{list(spots)}.')
    return positions
