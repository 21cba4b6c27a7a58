"""The warm-up of methods whose proxy has to learn before it can teach."""
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...registry import HOOKS
from ..runner_access import unwrapped


@HOOKS.register_module()
class WarmupHook(Hook):
    """Lets the losses of a method rise during a fraction of the training, the method's ``warmup``.

    What a proxy or a policy learns by does not change (:attr:`~mmkd.models.methods.Method.proxy_losses`).
    """

    priority = 'HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        for method in unwrapped(runner).mmkd.methods.values():
            if method.warmup:
                method.warmup_factor = linear_warmup(runner.iter, round(method.warmup * runner.max_iters))


def linear_warmup(iteration: int, length: int) -> float:
    """Return the factor of an iteration in a linear warm-up, from above 0 to 1.

    Args:
        iteration: The number of iterations done.
        length: Length of the warm-up in iterations; 0 for none.
    """
    return min(1.0, (iteration + 1) / (length + 1))
