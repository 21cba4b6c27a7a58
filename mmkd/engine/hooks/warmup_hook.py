"""The warm-up of methods whose proxy has to learn before it can teach, and how far training has come."""
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...models.methods import Method
from ...registry import HOOKS
from ..runner_access import unwrapped


@HOOKS.register_module()
class WarmupHook(Hook):
    """Lets the losses of a method rise during a fraction of the training, the method's ``warmup``.

    What a proxy or a policy learns by does not change (:attr:`~mmkd.models.methods.Method.proxy_losses`). The
    hook also tells all methods the :attr:`~mmkd.models.methods.Method.progress` of the training.
    """

    priority = 'HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        methods = unwrapped(runner).mmkd.methods
        for method in methods.modules():  # a method may contain another one
            if isinstance(method, Method):
                method.progress = runner.iter / runner.max_iters
        for method in methods.values():
            if method.warmup:
                method.warmup_factor = linear_warmup(runner.iter, round(method.warmup * runner.max_iters))


def linear_warmup(iteration: int, length: int) -> float:
    """Return the factor of an iteration in a linear warm-up, from above 0 to 1.

    Args:
        iteration: The number of iterations done.
        length: Length of the warm-up in iterations; 0 for none.
    """
    return min(1.0, (iteration + 1) / (length + 1))
