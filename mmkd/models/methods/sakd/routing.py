"""SAKD's multi-path routing, in which samples pass through stages of the student and of the teacher."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ....errors import MMKDError
from ...connectors import ConvConnector, LinearConnector
from ...spots.splitting import split
from ...teachers import Teacher

POOLED = -1
"""The number of a network's neck among the numbers of its stages, which start at 1."""


class Adapter(nn.Module):
    """Gives a feature of one network the shape of the other network's feature.

    It is a :class:`~mmkd.models.connectors.ConvConnector`, a strided or transposed convolution with batch
    norm and ReLU, or a linear layer for vectors.

    Args:
        source: Shape of a sample's feature, ``(C, H, W)`` or ``(C,)``.
        target: Shape of a sample's feature in the other network.
    """

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        super().__init__()
        self.connector = LinearConnector() if len(source) == 1 else ConvConnector()
        self.connector.build(source, target)

    def forward(self, feature: Tensor, like: Tensor) -> Tensor:
        """Return the feature in the shape of ``like``."""
        # Sizes differ if images are not of the size for which the layers were built.
        return resized_like(self.connector(feature), like)


class Routing(nn.Module):
    r"""Runs student and teacher side by side, and lets every sample change networks after every spot.

    At a spot with the choice a and adapters A,

    .. math:: f_T \leftarrow (1 - a) A_{S→T}(f_S) + a f_T, \\
              f_S \leftarrow (1 - a) f_S + a A_{T→S}(f_T)

    and at the output :math:`z = (1 - a_K) z_S + a_K z_T`.

    Args:
        stages: For every spot, the numbers of the student's and of the teacher's stage, or :data:`POOLED`;
            see :func:`stage_numbers`.
        shapes: For every spot, the shapes of a sample's feature in student and teacher.
    """

    def __init__(self, stages: Sequence[tuple[int, int]],
                 shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.to_teacher = nn.ModuleList(Adapter(student, teacher) for student, teacher in shapes)
        self.to_student = nn.ModuleList(Adapter(teacher, student) for student, teacher in shapes)

    def forward(self, student: nn.Module, teacher: Teacher, images: Tensor,
                teacher_features: Sequence[Tensor], teacher_logits: Tensor, choices: Tensor,
                skip_unchosen: bool = False) -> Tensor:
        """Compute routed logits.

        The student's parameters and batch statistics do not change: gradients reach only the adapters and
        the choices.

        Args:
            student: The student classifier.
            teacher: The teacher, frozen and in eval mode.
            images: The student's preprocessed batch ``(N, 3, H, W)``.
            teacher_features: The teacher's features at the spots.
            teacher_logits: The teacher's logits ``(N, K)``, used if there are no spots.
            choices: The choices ``(N, spots + 1)``, the last for the logits.
            skip_unchosen: Whether both networks run side by side only from the first spot that a sample of
                the batch has chosen. The choices at the spots before it get no gradient.

        Returns:
            Tensor: Logits ``(N, K)``.
        """
        return run_detached(student, self.run, teacher, images, teacher_features, teacher_logits, choices,
                            skip_unchosen)

    def run(self, student: nn.Module, teacher: Teacher, images: Tensor, teacher_features: Sequence[Tensor],
            teacher_logits: Tensor, choices: Tensor, skip_unchosen: bool) -> Tensor:
        """Run both networks; arguments as for :meth:`forward`."""
        student_path = _Path(student)
        first = first_chosen(choices[:, :-1]) if skip_unchosen else 0
        first_stage, teacher_stage = self.stages[first] if first < len(self.stages) else (None, 0)
        with torch.no_grad():  # nothing before the first spot is trained here
            x = student_path.advance(student_path.parts.stem(images), first_stage)
        if first_stage is None:
            return mixed(choices[:, -1], x, teacher_logits)
        teacher_path = _Path(teacher.model, teacher_stage)
        y = teacher_features[first]
        for index in range(first, len(self.stages)):
            if index > first:
                student_stage, teacher_stage = self.stages[index]
                x = student_path.advance(x, student_stage)
                y = teacher_path.advance(y, teacher_stage)
            choice = choices[:, index]
            routed_x = mixed(choice, x, self.to_student[index](y, x))
            y = mixed(choice, self.to_teacher[index](x, y), y)
            x = routed_x
        logits, = teacher.class_mapping.outputs([teacher_path.advance(y, None)])
        return mixed(choices[:, -1], student_path.advance(x, None), logits)


class _Path:
    """Runs a classifier stage by stage; ``stage`` is the number of the last stage that has been run."""

    def __init__(self, model: nn.Module, stage: int = 0) -> None:
        self.model = model
        self.parts = split(model.backbone)
        self.stage = stage

    def advance(self, feature: Any, stage: int | None) -> Any:
        """Run up to the output of a stage, of the neck (:data:`POOLED`) or of the head (``None``)."""
        last = None if stage == POOLED else stage
        if self.stage != POOLED:
            for _, module in self.parts.stages[self.stage:last]:
                feature = module(feature)
            if last is None:
                feature = self.parts.tail(feature)
                feature = (self.model.neck(feature) if self.model.with_neck else feature)[-1]
            self.stage = POOLED if last is None else last
        return self.model.head((feature, )) if stage is None else feature


def mixed(choice: Tensor, if_zero: Tensor, if_one: Tensor) -> Tensor:
    """Mix two tensors ``(N, ...)`` by choices ``(N,)``: ``(1 - choice) * if_zero + choice * if_one``."""
    choice = choice.to(if_one.dtype).reshape(-1, *[1] * (if_one.dim() - 1))
    return (1 - choice) * if_zero + choice * if_one


def first_chosen(choices: Tensor) -> int:
    """Return the index of the first of several spots that a sample has chosen; their number if none has.

    Args:
        choices: Shape ``(N, spots)``.
    """
    chosen = choices.detach().amax(dim=0).nonzero()
    return int(chosen[0]) if len(chosen) else choices.shape[1]


def resized_like(feature: Tensor, like: Tensor) -> Tensor:
    """Give a map ``(N, C, H, W)`` the height and width of another; vectors stay as they are."""
    size = like.shape[-2:]
    if feature.dim() != 4 or feature.shape[-2:] == size:
        return feature
    if feature.shape[-1] > like.shape[-1]:
        return nn.functional.adaptive_avg_pool2d(feature, size)
    return nn.functional.interpolate(feature, size=size, mode='nearest')


def run_detached(student: nn.Module, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call a function with the student as its first argument, such that the student does not learn.

    Inside, the student's parameters are detached, and its modules are in eval mode, except dense heads, some
    of which compute other outputs in eval mode; the modules inside these heads are in eval mode.

    Args:
        student: The student.
        function: Called with the student and ``args``.
        *args: Further arguments.

    Returns:
        Tensor: What the function returns.
    """
    parameters = {f'network.{name}': parameter.detach() for name, parameter in student.named_parameters()
                  if not name.startswith('mmkd.')}
    modes = [(module, module.training) for name, module in student.named_modules()
             if name.split('.')[0] != 'mmkd' and not isinstance(module, BaseDenseHead)]
    try:
        for module, _ in modes:
            module.training = False
        return torch.func.functional_call(_Call(student), parameters, (function, *args))
    finally:
        for module, mode in modes:
            module.training = mode


class _Call(nn.Module):
    """Holds a network during one call in which its parameters are replaced."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        return function(self.network, *args)


def stage_numbers(spots: Sequence[str], num_stages: int, role: str) -> list[int]:
    """Return the number of the stage that every spot reads, or :data:`POOLED` for ``features``.

    Args:
        spots: Names of spots, as in a config.
        num_stages: Number of stages of the network.
        role: ``'student'`` or ``'teacher'``, for error messages.

    Raises:
        MMKDError: If a spot is not the output of a stage, or the spots are not in the network's order.
    """
    numbers: list[int] = []
    for spot in spots:
        if spot == 'stages':
            numbers += range(1, num_stages + 1)
        elif spot == 'last_stage':
            numbers.append(num_stages)
        elif spot == 'features':
            numbers.append(POOLED)
        elif spot.startswith('stage') and spot[5:].isdigit() and 1 <= int(spot[5:]) <= num_stages:
            numbers.append(int(spot[5:]))
        else:
            raise MMKDError(f"SAKD routes at the ends of stages; the {role}'s spot {spot!r} is none of "
                            f"'stages', 'stage1' to 'stage{num_stages}', 'last_stage' and 'features'.")
    order = [num_stages + 1 if number == POOLED else number for number in numbers]
    if order != sorted(set(order)):
        raise MMKDError(f"SAKD needs the {role}'s spots in the order of the network, each of them once, not "
                        f'{list(spots)}.')
    return numbers
