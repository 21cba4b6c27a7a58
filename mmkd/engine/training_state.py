"""What training depends on besides the contents of MMEngine's checkpoints, rank by rank."""
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import all_gather, all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ..models.methods import EpochReports
from ..random_state import get_random_state, set_random_state
from .runner_access import unwrapped


def get_training_states(runner: Runner) -> list[dict]:
    """Return the state of every rank; all ranks call this together.

    Returns:
        list[dict]: For every rank its random state, gradients that were accumulated without an update yet,
            counters of methods since the last epoch, buffers that differ from those of rank 0, and input
            sizes that were drawn. Complete on rank 0 only.
    """
    model = unwrapped(runner)
    states = all_gather_object(dict(random=get_random_state(), input_sizes=_input_sizes(model)))
    parts = dict(gradients=_unfinished_gradients(runner), counters=dict(_counters(model)),
                 buffers=_differing_buffers(runner))
    for name, tensors in parts.items():
        for state, gathered in zip(states, _gather(tensors), strict=True):
            state[name] = gathered
    return states


def restore_training_state(runner: Runner, state: Mapping[str, Any]) -> None:
    """Restore what :func:`get_training_states` returned for this rank."""
    model = unwrapped(runner)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for name, gradient in state['gradients'].items():
        parameters[name].grad = gradient.to(parameters[name].device)
    targets = {**dict(_buffers(runner)), **dict(_counters(model))}
    for name, value in {**state['buffers'], **state['counters']}.items():
        targets[name].copy_(value)
    for name, size in state['input_sizes'].items():
        modules[name]._input_size = None if size is None else tuple(size)
    set_random_state(state['random'])


def _optimizers(runner: Runner) -> Iterator[OptimWrapper]:
    wrapper = runner.optim_wrapper
    yield from wrapper.optim_wrappers.values() if isinstance(wrapper, OptimWrapperDict) else (wrapper, )


def _unfinished_gradients(runner: Runner) -> dict[str, Tensor]:
    """Return the gradients of parameters whose optimizer accumulates them and has not made its step."""
    accumulated = {parameter for wrapper in _optimizers(runner) if not wrapper.should_update()
                   for group in wrapper.optimizer.param_groups for parameter in group['params']}
    return {name: parameter.grad for name, parameter in unwrapped(runner).named_parameters()
            if parameter in accumulated and parameter.grad is not None}


def _buffers(runner: Runner) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of the model, such as BatchNorm's statistics, and of its moving average."""
    yield from unwrapped(runner).named_buffers()
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            for name, buffer in hook.ema_model.named_buffers():
                yield f'ema_model.{name}', buffer


def _differing_buffers(runner: Runner) -> dict[str, Tensor]:
    """Return the buffers that are not as on rank 0, whose buffers MMEngine saves."""
    if get_world_size() == 1:
        return {}
    buffers = dict(_buffers(runner))
    checksums = all_gather_object({name: _checksum(buffer) for name, buffer in buffers.items()})
    return {name: buffer for name, buffer in buffers.items()
            if checksums[get_rank()][name] != checksums[0].get(name)}


def _counters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, method in (model.mmkd.methods.items() if hasattr(model, 'mmkd') else ()):
        for counter in method.counters if isinstance(method, EpochReports) else ():
            yield f'mmkd.methods.{name}.{counter}', getattr(method, counter)


def _input_sizes(model: nn.Module) -> dict[str, Any]:
    """Return the sizes to which MMDetection's BatchSyncRandomResize resizes batches."""
    return {name: module._input_size for name, module in model.named_modules()
            if type(module).__name__ == 'BatchSyncRandomResize'}


def _checksum(buffer: Tensor) -> int:
    return zlib.crc32(buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _gather(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the tensors of every rank in the memory of rank 0, moved one by one to keep memory low.

    Args:
        tensors: Tensors by name. Ranks may have different names.
    """
    known = all_gather_object({name: (tuple(tensor.shape), tensor.dtype, tensor.device.type)
                               for name, tensor in tensors.items()})
    gathered: list[dict[str, Tensor]] = [{} for _ in known]
    for name in sorted(set().union(*known)):
        shape, dtype, device = next(names[name] for names in known if name in names)
        tensor = tensors[name] if name in tensors else torch.zeros(shape, dtype=dtype, device=device)
        for rank, part in enumerate(all_gather(tensor.detach().contiguous())):
            if is_main_process() and name in known[rank]:
                gathered[rank][name] = part.to('cpu', copy=True)
    return gathered
