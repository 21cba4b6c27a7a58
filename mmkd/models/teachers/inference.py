"""Running a frozen network at the least cost."""
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import MMKDError, one_line
from ..spots import HookPoint, Recorder, is_classifier, is_two_stage
from ..spots.probing import run

PRECISIONS = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)

_ROUNDING = 1e-3
"""What another memory format may change in float32, relative to the largest value. Rounding changes about
1e-6; an operator that reads memory wrongly may change no more than some per cent, being one of many."""

_ROUNDING_TF32 = 1e-2
"""The same on GPUs, where convolutions may round to TF32 (11 bits, 5e-4) in one format only."""

_ROUNDING_HALF = 0.05
"""The same where the network computes in half precision, of which bfloat16 rounds to 8 bits (4e-3)."""


@dataclass(frozen=True)
class _Plan:
    """What the first batch taught about some points.

    Args:
        max_records: Number of records after which the network can stop; ``None`` where it may vary.
        idle: Layers that nothing recorded depends on.
    """
    max_records: int | None = None
    idle: tuple[nn.Module, ...] = ()


class TeacherForward:
    """Runs a frozen network as far as the points that are asked for, and not what they do not depend on.

    A dense detector's box branch is left out when only its class logits are wanted, and the network ends
    where all has been seen. What can be left out is found on the first batch, by running it whole. The first
    batch also tells by how much the options change what is recorded. Whatever they are, and whether or not
    the student's autocast covers the network, it is ``float32`` and contiguous.

    Args:
        model: The network.
        channels_last: Whether images and weights lie in memory with their channels last; not kept up for
            networks whose own operators cannot deal with that. Checked when points are first asked for.
        precision: ``'fp32'``; or ``'bf16'`` or ``'fp16'``, in which backbone and neck compute.
        compile: Whether ``torch.compile`` makes backbone and neck faster; where points that are asked for lie
            inside, the parts between them.

    Attributes:
        points: All points that will be asked for, by name.

    Raises:
        MMKDError: If the precision is none of those, or the network has no backbone to apply options to.
    """

    def __init__(self, model: nn.Module, channels_last: bool = True, precision: str = 'fp32',
                 compile: bool = False) -> None:
        if precision not in PRECISIONS:
            raise MMKDError(f'teacher.precision must be one of {tuple(PRECISIONS)}, not {precision!r}.')
        if (precision != 'fp32' or compile) and not hasattr(model, 'backbone'):
            raise MMKDError('teacher.precision and teacher.compile are for networks with a backbone, and '
                            f'{type(model).__name__} has none.')
        self.model = model
        self.channels_last = channels_last
        self.precision = precision
        self.compile = compile
        self._plans: dict[tuple, _Plan] = {}
        self._compiled: list[nn.Module] = []
        self._prepared = False
        self.points: dict[str, HookPoint] = {}

    @torch.no_grad()
    def record(self, names: Sequence[str], inputs: Tensor,
               rois: Sequence[Tensor] | None = None) -> dict[str, list]:
        """Return what is seen at some of the points, see :func:`~mmkd.models.spots.record`.

        Args:
            names: What to record.
            inputs: A preprocessed batch ``(N, 3, H, W)``.
            rois: Two-stage detectors: boxes to judge.
        """
        key, points = tuple(names), {name: self.points[name] for name in names}
        if key not in self._plans:
            self._prepare(points, inputs, rois)
            self._plans[key] = self._plan(points, inputs, rois)
        return self._run(self._plans[key], points, inputs, rois)

    def _prepare(self, points: Mapping[str, HookPoint], inputs: Tensor, rois: Sequence[Tensor] | None) -> None:
        if self._prepared and not self.channels_last:
            return
        with torch.autocast(inputs.device.type, enabled=False), _uncompiled(self._compiled):
            plain = self._check_channels_last(points, inputs, rois)
        if self._prepared:
            return
        # Not before the first batch: until then others copy weights, and the network moves to its device.
        self._prepared = True
        if PRECISIONS[self.precision]:
            _cast(PRECISIONS[self.precision], self._parts())
        if self.compile:
            names = {name for point in self.points.values() for name in point.modules}
            asked = {self.model.get_submodule(name) for name in names}
            self._compiled = [module for part in self._parts() for module in _compile(part, asked)]
        one = inputs.new_ones(1, 1)
        options = [name for name, used in (
            ('channels last', self.channels_last), ('compiled', self.compile),
            (self.precision, self.precision != 'fp32'),
            ("the student's autocast", self.precision == 'fp32' and (one @ one).dtype != one.dtype)) if used]
        if options:
            change = _change(plain, _tensors(self._run(_Plan(), points, inputs, rois)))
            print_log(f'Teacher ({", ".join(options)}): what it gives changes by up to {100 * change:.2g} % '
                      'of the largest value.', 'current')

    def _parts(self) -> list[nn.Module]:
        return [part for part in (getattr(self.model, name, None) for name in ('backbone', 'neck'))
                if isinstance(part, nn.Module)]

    def _check_channels_last(self, points: Mapping[str, HookPoint], inputs: Tensor,
                             rois: Sequence[Tensor] | None) -> list[Tensor]:
        """Run the network with channels first, then last; the latter is undone for good if it is wrong.

        Returns:
            list: What is recorded with channels first.
        """
        wanted = self.channels_last
        self._set_memory_format(False)
        plain = _tensors(self._run(_Plan(), points, inputs, rois))
        if not wanted:
            return plain
        if not self._prepared and is_two_stage(self.model):
            # Operators of MMCV, such as RoIAlign, read memory as if channels came first.
            self._parts()[-1].register_forward_hook(lambda _, args, output: _map(output, Tensor.contiguous))
        self._set_memory_format(True)
        try:
            change = _change(plain, _tensors(self._run(_Plan(), points, inputs, rois)))
            problem = f'gives other results with channels last (by {100 * change:.2g} % of the largest value)'
        except RuntimeError as error:
            change, problem = float('inf'), f'cannot run with channels last ({one_line(error)})'
        if not change < self._rounding(inputs.device):
            self._set_memory_format(False)
            if self._compiled:
                torch.compiler.reset()  # what is compiled takes the weights to lie as they did
            print_log(f'The teacher {type(self.model).__name__} {problem}; it runs without.', 'current')
        return plain

    def _set_memory_format(self, channels_last: bool) -> None:
        self.channels_last = channels_last
        self.model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def _rounding(self, device: torch.device) -> float:
        if self._prepared and self.precision != 'fp32':
            return _ROUNDING_HALF
        return _ROUNDING if device.type == 'cpu' else _ROUNDING_TF32

    def _plan(self, points: Mapping[str, HookPoint], inputs: Tensor, rois: Sequence[Tensor] | None) -> _Plan:
        seen, num_records = self._record(_Plan(), points, inputs, rois)
        if rois is not None:
            return _Plan()  # a cascade may end earlier in one batch than in another
        head = getattr(self.model, 'bbox_head', None)
        if is_classifier(self.model) or head is None:
            return _Plan(num_records)
        plan = _Plan(num_records, tuple(self._idle_layers(head, points, inputs)))
        try:
            same = _change(_tensors(seen), _tensors(self._run(plan, points, inputs, rois))) < _ROUNDING
        except (MMKDError, RuntimeError):  # other layers cannot take what stands in for an idle one
            same = False
        return plan if same else _Plan(num_records)

    def _run(self, plan: _Plan, points: Mapping[str, HookPoint], inputs: Tensor,
             rois: Sequence[Tensor] | None) -> dict[str, list]:
        return self._record(plan, points, inputs, rois)[0]

    def _record(self, plan: _Plan, points: Mapping[str, HookPoint], inputs: Tensor,
                rois: Sequence[Tensor] | None) -> tuple[dict[str, list], int]:
        own = self.precision != 'fp32'
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with (torch.autocast(inputs.device.type, enabled=False) if own else nullcontext(),
              _bypassed(plan.idle), Recorder(self.model, points, plan.max_records) as recorder):
            run(self.model, points, inputs, rois)
        # The student's autocast covers a teacher of float32, too.
        seen = _map({name: recorder[name] for name in points}, _float)
        return (_map(seen, Tensor.contiguous) if self.channels_last else seen), recorder.num_records

    def _idle_layers(self, head: nn.Module, points: Mapping[str, HookPoint], inputs: Tensor) -> list[nn.Module]:
        """Return the outermost modules of a head with parameters that nothing recorded depends on."""
        parameters = list(head.parameters())
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                seen, _ = self._record(_Plan(), points, inputs, None)
                total = sum(value.sum() for value in _tensors(seen) if value.requires_grad)
            if not isinstance(total, Tensor):
                return []
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
        reached = {id(parameter) for parameter, gradient in zip(parameters, gradients, strict=True)
                   if gradient is not None}
        return _outermost(head, reached)


def _outermost(module: nn.Module, reached: set[int]) -> list[nn.Module]:
    found = []
    for child in module.children():
        parameters = [id(parameter) for parameter in child.parameters()]
        if parameters and not reached.intersection(parameters) and type(child) not in (nn.ModuleList,
                                                                                       nn.ModuleDict):
            found.append(child)
        else:
            found += _outermost(child, reached)
    return found


@contextmanager
def _bypassed(modules: Sequence[nn.Module]):
    """Let modules hand on what they are given, inside the block."""
    try:
        for module in modules:
            module.forward = _identity
        yield
    finally:
        for module in modules:
            module.__dict__.pop('forward', None)


def _identity(value, *_, **__):
    return value


def _cast(dtype: torch.dtype, parts: Sequence[nn.Module]) -> None:
    """Let the first part take and the last part give ``float32``, and all compute in another type."""
    for part in parts:
        part.to(dtype)
    parts[0].register_forward_pre_hook(lambda _, args: (args[0].to(dtype), *args[1:]))
    parts[-1].register_forward_hook(lambda _, args, output: _map(output, Tensor.float))


def _compile(module: nn.Module, asked: set[nn.Module]) -> list[nn.Module]:
    """Compile the largest modules that have no point inside; hooks on compiled ones still see their calls.

    Returns:
        list: These modules.
    """
    if any(inner in asked for inner in module.modules() if inner is not module):
        return [found for child in module.children() for found in _compile(child, asked)]
    if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity)):
        return []
    module.forward = torch.compile(module.forward)
    return [module]


@contextmanager
def _uncompiled(modules: Sequence[nn.Module]):
    """Let compiled modules run as they are written, inside the block."""
    compiled = {module: module.__dict__.pop('forward') for module in modules}
    try:
        yield
    finally:
        for module, forward in compiled.items():
            module.forward = forward


def _float(value: Tensor) -> Tensor:
    return value.float() if value.element_size() < 4 else value


def _map(value, function):
    """Apply a function to all floating point tensors inside a value."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _map(one, function) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_map(one, function) for one in value)
    return value


def _tensors(value) -> list[Tensor]:
    found = []
    _map(value, found.append)
    return found


def _change(plain: list[Tensor], changed: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest value of the same tensor."""
    if [one.shape for one in plain] != [one.shape for one in changed]:
        return float('inf')
    return max((((one - other).abs().max() / one.abs().max().clamp(min=1e-12)).item()
                for one, other in zip(plain, changed, strict=True) if one.numel()), default=0.0)
