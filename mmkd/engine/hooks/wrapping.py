"""The network inside a Runner, with or without a wrapper for data-parallel training."""
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import nn


def unwrapped(runner) -> nn.Module:
    """Return the network itself."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def rewrap(runner) -> None:
    """Wrap the network anew after parameters were frozen.

    DDP's reducer would wait for their gradients otherwise.
    """
    if isinstance(runner.model, MMDistributedDataParallel):
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), unwrapped(runner))
