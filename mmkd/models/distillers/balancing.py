"""How strongly methods pull at the student's features, relative to its task."""
from collections.abc import Mapping, Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import MMKDError
from ..methods import Method
from ..methods.mixins import in_first_phase
from ..nested import tensors_in
from ..spots import HookPoint, Recorder
from ..spots.resolve import named_spots

WITHOUT_GRADIENT = ('rois', 'cls_targets', 'box_targets', 'neck_inputs')
"""Spots that are recorded without a gradient."""

_PREFIX = 'gradient:'
_LOSS_SCALE = 1024.0  # so that gradients in float16 do not vanish; an exact power of two
_MEMORY = 5  # measurements; fewer until there are as many
_LARGEST_CHANGE = 10.0
_LARGEST_FACTOR = 10.0  # a method's own layers learn faster by the same factor, up to divergence
_CHECKPOINTED = ('gradients of features cannot be measured through reentrant activation checkpointing; '
                 'torch.utils.checkpoint with use_reentrant=False is no obstacle')


class GradientBalance(nn.Module):
    r"""Measures the gradients of methods relative to the task's, and balances methods by them.

    .. math:: r_m = \frac{\| \partial L_m / \partial F \|}{\| \partial L_{task} / \partial F \|}, \quad
              \text{factor}_m = \min\Big( \frac{\text{share}_m}{\bar r_m}, 10 \Big)

    L_m are the losses of a method without those that train on labels, before schedules; F are features of the
    student; the norms are those of the whole global batch, in float32. F is the last of the outputs of the
    backbone's stages and of the neck that is computed before everything that the method reads; the output of
    the first stage if the method reads something before it; and the class logits if nothing before them is
    trained. :math:`\bar r` is a moving average of logarithms, which gives every one of the last measurements
    the same weight at first. A measurement that differs from it by more than a factor of 10 counts as one
    that differs by 10. What a method learns does not depend on its weight, unless it is so small that the
    factor would be above 10, by which the method's own layers would learn faster, too.

    A measurement runs the backward pass down to F, once for the task and once for every method. It leaves
    the gradients of parameters alone. Ranks measure together and get the same ratios.

    Args:
        student: The student network.
        methods: The methods by name, built.
    """

    ratios: Tensor
    counts: Tensor
    last: Tensor

    def __init__(self, student: nn.Module, methods: Mapping[str, Method]) -> None:
        super().__init__()
        spots = named_spots(student)
        stages = [f'stage{number}' for number in range(1, len(spots)) if f'stage{number}' in spots]
        self._names = list(methods)
        self._points = {_PREFIX + spot: spots[spot] for spot in [*stages, 'features', 'cls_logits']
                        if spot in spots}
        self._tried: set[str] = set()
        self.due = False
        self.unavailable = False
        # Without a balance, only the log depends on these; checkpoints are as without this module.
        is_saved = any(method.is_balanced for method in methods.values())
        self.register_buffer('ratios', torch.zeros(len(methods)), is_saved)
        self.register_buffer('counts', torch.zeros(len(methods)), is_saved)
        self.register_buffer('last', torch.zeros(len(methods)), False)

    def points(self, methods: Mapping[str, Method]) -> dict[str, HookPoint]:
        """Return the points to record in a training step: none if nothing is to be measured.

        The ratios are measured when they are :attr:`due`, which a hook decides, and when a method that is
        balanced has not been measured yet.

        Args:
            methods: The methods of the training step by name.
        """
        if self.unavailable or not torch.is_grad_enabled() or any(map(in_first_phase, methods.values())):
            return {}
        if self.due or any(self._is_new(name) for name, method in methods.items() if method.is_balanced):
            return self._points
        return {}

    def _is_new(self, name: str) -> bool:
        """Whether a method has not been measured, in a checkpoint that was resumed either."""
        if name in self._tried:
            return False
        self._tried.add(name)
        return not self.counts[self._names.index(name)]

    def measure(self, recorder: Recorder, losses: Mapping, method_losses: Mapping[str, Mapping],
                methods: Mapping[str, Method]) -> None:
        """Measure the ratios in a training step whose recorder has the :meth:`points`.

        Args:
            recorder: The recorder of the student's training step.
            losses: The weighted losses of the training step, without balance.
            method_losses: The losses of the methods, not scaled by schedules.
            methods: The methods by name.

        Raises:
            MMKDError: If a method is to be balanced and cannot be measured.
        """
        order = recorder.order()
        if not order.keys() & self._points.keys():
            return
        scaled = {f'{name}.{loss}' for name, values in method_losses.items() for loss in values
                  if loss not in methods[name].task_losses}
        task = _total([value for name, value in losses.items() if 'loss' in name and name not in scaled])
        totals = {name: _total([values[loss] for loss in values if methods[name].is_balanced_loss(loss)])
                  for name, values in method_losses.items()}
        points = {name: self._choose(recorder, order, method) for name, method in methods.items()}
        squares = self.ratios.new_zeros(2, len(self._names))
        try:
            for point in dict.fromkeys(point for point in points.values() if point is not None):
                features = _trained(recorder[point])
                task_square = _squared_norm(task, features)
                for name in (name for name in methods if points[name] == point):
                    index = self._names.index(name)
                    squares[0, index] = _squared_norm(totals[name], features)
                    squares[1, index] = task_square
        except RuntimeError as error:
            if 'checkpoint' not in str(error):
                raise
            self._give_up(methods)
            return
        all_reduce(squares)
        self._update((squares[0] / squares[1]).sqrt())
        self._tried.update(methods)

    def balanced(self, losses: Mapping, methods: Mapping[str, Method]) -> dict:
        """Return the losses of a training step with those of balanced methods multiplied by their factors.

        Args:
            losses: The weighted losses of the training step.
            methods: The methods by name.
        """
        balanced = dict(losses)
        for name, method in methods.items():
            if not method.is_balanced or in_first_phase(method):
                continue
            factor = self.factor(name, method)
            for key in (key for key in losses if key.startswith(f'{name}.')):
                if method.is_balanced_loss(key.removeprefix(f'{name}.')):
                    balanced[key] = factor * losses[key]
        return balanced

    def factor(self, name: str, method: Method) -> float | Tensor:
        """Return the factor of a method's losses: 1 if it is not balanced, and 0 until it is measured."""
        if not method.is_balanced:
            return 1.0
        ratio = self.ratios[self._names.index(name)]
        factor = (method.share / ratio).clamp(max=_LARGEST_FACTOR)
        return torch.where(ratio > 0, factor, torch.zeros_like(ratio))

    def ratio(self, name: str, method: Method) -> float:
        """Return the last measured ratio of a method, with its present factors; 0 without a measurement."""
        ratio = self.last[self._names.index(name)] * self.factor(name, method)
        return ratio.item() * method.scale * method.warmup_factor

    def mean_ratio(self, name: str, method: Method) -> float:
        """Return the averaged ratio of a method, with its present factors; 0 without a measurement."""
        ratio = self.ratios[self._names.index(name)] * self.factor(name, method)
        return ratio.item() * method.scale * method.warmup_factor

    def _choose(self, recorder: Recorder, order: Mapping[str, int], method: Method) -> str | None:
        """Return the point at which the gradient of a method is measured."""
        trained = [name for name in self._points if name in order and _trained(recorder[name])]
        features = sorted(set(trained) - {f'{_PREFIX}cls_logits'}, key=order.__getitem__)
        reads = min((order[spot] for spot in method.student_spots if spot not in WITHOUT_GRADIENT),
                    default=recorder.num_records)
        before = [name for name in features if order[name] <= reads]
        return next(iter([*reversed(before), *features, *trained]), None)

    @torch.no_grad()
    def _update(self, measured: Tensor) -> None:
        """Average new measurements with the earlier ones; what is not finite does not count."""
        self.last.copy_(torch.where(torch.isfinite(measured), measured, self.last))
        valid = torch.isfinite(measured) & (measured > 0)
        mean = torch.where(self.counts > 0, self.ratios, measured)
        limited = measured.clamp(mean / _LARGEST_CHANGE, mean * _LARGEST_CHANGE)
        weight = 1 / (self.counts + 1).clamp(max=_MEMORY)
        self.ratios.copy_(torch.where(valid, mean * (limited / mean)**weight, self.ratios))
        self.counts += valid

    def _give_up(self, methods: Mapping[str, Method]) -> None:
        balanced = [name for name, method in methods.items() if method.is_balanced]
        if balanced:
            names = ' and '.join(balanced)
            raise MMKDError(f"{names} cannot have balance='gradient', because {_CHECKPOINTED}. "
                            f"With model.methods.{balanced[0]}.balance='none', its weight counts.")
        print_log(f'The log has no gradient ratios, because {_CHECKPOINTED}.', 'current')
        self.unavailable = True


def _total(losses: Sequence) -> Tensor:
    """Return the sum of losses, which are tensors or lists of tensors, as MMEngine adds them up."""
    tensors = [level for loss in losses for level in (loss if isinstance(loss, (list, tuple)) else [loss])]
    return sum(tensor.mean() for tensor in tensors)


def _trained(calls: list) -> list[Tensor]:
    """Return the tensors of recorded outputs that have a gradient."""
    return [tensor for tensor in tensors_in(calls) if tensor.requires_grad]


def _squared_norm(loss: Tensor | float, features: list[Tensor]) -> Tensor | float:
    """Return the squared norm of the gradient of a loss with respect to features."""
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return 0.0
    with torch.autocast(loss.device.type, enabled=False):
        gradients = torch.autograd.grad(_LOSS_SCALE * loss, features, retain_graph=True, allow_unused=True)
    return sum((torch.linalg.vector_norm(gradient, dtype=torch.float32) / _LOSS_SCALE).square()
               for gradient in gradients if gradient is not None)
