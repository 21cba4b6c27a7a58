"""What hooks do with a Runner whose methods start and end during training."""
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrapped(runner: Runner) -> nn.Module:
    """Return the runner's model without the wrapper that distributed training puts around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def rewrap(runner: Runner) -> None:
    """Wrap the model again after some of its parameters have been frozen.

    Otherwise the reducer of DDP would wait for their gradients.
    """
    if isinstance(runner.model, MMDistributedDataParallel):
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), unwrapped(runner))


def forget_scalars(runner: Runner, method: str) -> None:
    """Drop the losses of a method that has ended; the log would repeat their last values otherwise."""
    scalars = runner.message_hub.log_scalars
    for key in [key for key in scalars if key.startswith(f'train/{method}.')]:
        scalars.pop(key)
