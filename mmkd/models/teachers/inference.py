"""Running a frozen network at minimal cost."""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import MMKDError, one_line
from ..nested import map_floats, tensors_in
from ..spots import HookPoint, Recorder, is_classifier, is_query_based, is_two_stage
from ..spots.probing import run

PRECISIONS = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)

_ROUNDING = 1e-3
"""By how much another memory format may change values in float32, relative to the largest value. Rounding
changes about 1e-6; a single operator that misreads memory may change as little as a few percent."""

_ROUNDING_TF32 = 1e-2
"""The limit on GPUs, where convolutions may round to TF32 (11 bits, 5e-4) in one memory format only."""

_ROUNDING_HALF = 0.05
"""The limit in half precision; bfloat16 rounds to 8 bits (4e-3)."""


@dataclass(frozen=True)
class _Plan:
    """What the first batch has shown about a set of points.

    Args:
        max_records: Number of records after which the network can stop; ``None`` where it may vary.
        idle: Layers that no recorded value depends on.
    """
    max_records: int | None = None
    idle: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class _Batch:
    """What the network is run on; see :meth:`TeacherForward.record`."""
    inputs: Tensor
    rois: Sequence[Tensor] | None
    data_samples: Sequence | None


class TeacherForward:
    """Runs a frozen network only as far as the recorded points require.

    The box branch of a dense detector is skipped if only its class logits are recorded, and the forward pass
    stops once everything is recorded. What can be skipped is determined on the first batch, by running the
    whole network. The first batch also measures by how much the options change the recorded values, which is
    logged. Recorded values are ``float32`` and contiguous, whatever the options and whether or not the
    student's autocast covers the network.

    Args:
        model: The network.
        channels_last: Whether images and weights have the memory format ``torch.channels_last``. It is
            dropped for networks with operators that do not support it; this is checked when points are first
            recorded.
        precision: ``'fp32'``, or ``'bf16'`` or ``'fp16'`` for the computation of backbone and neck.
        compile: Whether to compile backbone and neck with ``torch.compile``; where recorded points are inside
            of them, the modules around these points are compiled.

    Attributes:
        points: All points that can be recorded, by name.

    Raises:
        MMKDError: If the network has no backbone to apply the options to.
    """

    def __init__(self, model: nn.Module, channels_last: bool = True, precision: str = 'fp32',
                 compile: bool = False) -> None:
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
               rois: Sequence[Tensor] | None = None,
               data_samples: Sequence | None = None) -> dict[str, list]:
        """Return what is recorded at some of the points, see :func:`~mmkd.models.spots.record`.

        Args:
            names: The names of the points.
            inputs: A preprocessed batch ``(N, 3, H, W)``.
            rois: Two-stage detectors: the boxes ``(R, 5)`` to classify, for every cascade stage.
            data_samples: Query-based detectors: the samples of the batch, see
                :func:`~mmkd.models.spots.queries.run_transformer`.

        Returns:
            dict: By name, the list of recorded values.
        """
        key = tuple(names)
        batch = _Batch(inputs, rois, data_samples)
        points = {name: self.points[name] for name in names}
        if key not in self._plans:
            self._prepare(points, batch)
            self._plans[key] = self._plan(points, batch)
        return self._run(self._plans[key], points, batch)

    def _prepare(self, points: Mapping[str, HookPoint], batch: _Batch) -> None:
        if self._prepared and not self.channels_last:
            return
        inputs = batch.inputs
        with torch.autocast(inputs.device.type, enabled=False), _uncompiled(self._compiled):
            plain = self._check_channels_last(points, batch)
        if self._prepared:
            return
        # Not before the first batch: until then proxies copy weights, and the network moves to its device.
        self._prepared = True
        dtype = PRECISIONS[self.precision]
        if dtype is not None:
            _cast(dtype, self._parts())
        if self.compile:
            names = {name for point in self.points.values() for name in point.modules}
            recorded = {self.model.get_submodule(name) for name in names}
            self._compiled = [module for part in self._parts() for module in _compile(part, recorded)]
        product = inputs.new_ones(1, 1) @ inputs.new_ones(1, 1)
        autocast = product.dtype != inputs.dtype
        options = [name for name, used in (
            ('channels last', self.channels_last), ('compiled', self.compile),
            (self.precision, self.precision != 'fp32'),
            ("the student's autocast", self.precision == 'fp32' and autocast)) if used]
        if options:
            change = _change(plain, _tensors(self._run(_Plan(), points, batch)))
            print_log(f'Teacher ({", ".join(options)}): these options change its outputs by up to '
                      f'{100 * change:.2g} % of the largest value.', 'current')

    def _parts(self) -> list[nn.Module]:
        return [part for part in (getattr(self.model, name, None) for name in ('backbone', 'neck'))
                if isinstance(part, nn.Module)]

    def _check_channels_last(self, points: Mapping[str, HookPoint], batch: _Batch) -> list[Tensor]:
        """Compare both memory formats; channels last is dropped for good if it changes the outputs.

        Returns:
            list: The tensors that are recorded with channels first.
        """
        channels_last = self.channels_last
        self._set_memory_format(False)
        plain = _tensors(self._run(_Plan(), points, batch))
        if not channels_last:
            return plain
        if not self._prepared and (is_two_stage(self.model) or is_query_based(self.model)):
            # Operators of MMCV, such as RoIAlign and deformable attention, read memory as if channels came
            # first. This hook stays.
            self._parts()[-1].register_forward_hook(
                lambda _, args, output: map_floats(output, Tensor.contiguous))
        self._set_memory_format(True)
        try:
            change = _change(plain, _tensors(self._run(_Plan(), points, batch)))
            problem = (f'computes different outputs with channels last (by {100 * change:.2g} % of the '
                       'largest value)')
        except RuntimeError as error:
            change, problem = float('inf'), f'cannot run with channels last ({one_line(error)})'
        if not change < self._rounding(batch.inputs.device):
            self._set_memory_format(False)
            if self._compiled:
                torch.compiler.reset()  # compiled modules assume the memory format of their weights
            print_log(f'The teacher {type(self.model).__name__} {problem}; it runs with channels first.',
                      'current')
        return plain

    def _set_memory_format(self, channels_last: bool) -> None:
        self.channels_last = channels_last
        self.model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def _rounding(self, device: torch.device) -> float:
        if self._prepared and self.precision != 'fp32':
            return _ROUNDING_HALF
        return _ROUNDING if device.type == 'cpu' else _ROUNDING_TF32

    def _plan(self, points: Mapping[str, HookPoint], batch: _Batch) -> _Plan:
        outputs, num_records = self._record(_Plan(), points, batch)
        if batch.rois is not None:
            return _Plan()  # a cascade may stop at different stages in different batches
        head = getattr(self.model, 'bbox_head', None)
        # No layer for queries is idle: those that no output depends on by a gradient select the queries.
        if is_classifier(self.model) or is_query_based(self.model) or head is None:
            return _Plan(num_records)
        plan = _Plan(num_records, tuple(self._idle_layers(head, points, batch)))
        try:
            planned = self._run(plan, points, batch)
            same = _change(_tensors(outputs), _tensors(planned)) < _ROUNDING
        except (MMKDError, RuntimeError):  # other layers cannot use the input of an idle layer as its output
            same = False
        return plan if same else _Plan(num_records)

    def _run(self, plan: _Plan, points: Mapping[str, HookPoint], batch: _Batch) -> dict[str, list]:
        return self._record(plan, points, batch)[0]

    def _record(self, plan: _Plan, points: Mapping[str, HookPoint],
                batch: _Batch) -> tuple[dict[str, list], int]:
        reduced_precision = self.precision != 'fp32'
        inputs = batch.inputs
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with (torch.autocast(inputs.device.type, enabled=False) if reduced_precision else nullcontext(),
              _bypassed(plan.idle), Recorder(self.model, points, plan.max_records) as recorder):
            run(self.model, points, inputs, batch.rois, batch.data_samples)
        # The student's autocast covers a teacher in float32 as well.
        outputs = map_floats({name: recorder[name] for name in points}, _float)
        if self.channels_last:
            outputs = map_floats(outputs, Tensor.contiguous)
        return outputs, recorder.num_records

    def _idle_layers(self, head: nn.Module, points: Mapping[str, HookPoint],
                     batch: _Batch) -> list[nn.Module]:
        """Return the outermost modules of a head whose parameters no recorded value depends on."""
        parameters = list(head.parameters())
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                outputs, _ = self._record(_Plan(), points, batch)
                total = sum(value.sum() for value in _tensors(outputs) if value.requires_grad)
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
    """Return the outermost modules inside a module with parameters, none of which is among the reached."""
    outermost = []
    for child in module.children():
        parameters = [id(parameter) for parameter in child.parameters()]
        is_container = type(child) in (nn.ModuleList, nn.ModuleDict)
        if parameters and not reached.intersection(parameters) and not is_container:
            outermost.append(child)
        else:
            outermost += _outermost(child, reached)
    return outermost


@contextmanager
def _bypassed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let modules return their inputs inside the block."""
    try:
        for module in modules:
            module.forward = _identity
        yield
    finally:
        for module in modules:
            module.__dict__.pop('forward', None)


def _identity(value: Any, *_, **__) -> Any:
    return value


def _cast(dtype: torch.dtype, parts: Sequence[nn.Module]) -> None:
    """Let the parts compute in another type, between an input and an output in ``float32``."""
    for part in parts:
        part.to(dtype)
    # These hooks stay, as the cast does.
    parts[0].register_forward_pre_hook(lambda _, args: (args[0].to(dtype), *args[1:]))
    parts[-1].register_forward_hook(lambda _, args, output: map_floats(output, Tensor.float))


def _compile(module: nn.Module, recorded: set[nn.Module]) -> list[nn.Module]:
    """Compile the largest modules that contain no recorded module; hooks on compiled modules still run.

    Returns:
        list: The compiled modules.
    """
    if any(inner in recorded for inner in module.modules() if inner is not module):
        return [compiled for child in module.children() for compiled in _compile(child, recorded)]
    if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity)):
        return []
    module.forward = torch.compile(module.forward)
    return [module]


@contextmanager
def _uncompiled(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let compiled modules run in eager mode inside the block."""
    compiled = {module: module.__dict__.pop('forward') for module in modules}
    try:
        yield
    finally:
        for module, forward in compiled.items():
            module.forward = forward


def _float(value: Tensor) -> Tensor:
    return value.float() if value.element_size() < 4 else value


def _tensors(value: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    """Return the largest difference between tensors, relative to the largest value of the same tensor."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return float('inf')
    pairs = [pair for pair in zip(before, after, strict=True) if pair[0].numel()]
    return max((((old - new).abs().max() / old.abs().max().clamp(min=1e-12)).item() for old, new in pairs),
               default=0.0)
