"""What hooks do with a Runner when methods come and go."""
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


def forget_scalars(runner, method: str) -> None:
    """Drop the losses of a method that has ended, or the log would repeat the last ones for ever."""
    scalars = runner.message_hub.log_scalars
    for key in [key for key in scalars if key.startswith(f'train/{method}.')]:
        scalars.pop(key)
