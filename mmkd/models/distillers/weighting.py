"""How the losses of the student and of its methods are weighted against one another."""
import math
from collections.abc import Collection, Mapping

from torch import Tensor


def weighted_losses(student_losses: Mapping,
                    method_losses: Mapping[str, Mapping[str, Tensor]],
                    student_task: Mapping[str, float],
                    scale: Mapping[str, float],
                    task_losses: Mapping[str, Collection[str]],
                    proxy_losses: Mapping[str, Collection[str]]) -> dict:
    r"""Weight the losses of a training step and return them in one dict.

    With the factor :math:`e_m` (``student_task``) and the scale :math:`s_m` of every method m,

    .. math::
        L = \Big( \prod_m e_m \Big) \, L_{student}
            + \sum_m \Big( \prod_{k \neq m} e_k \Big) \, L_{m, task} + L_{m, proxy} + s_m \, L_{m, distill}

    - The student's task losses are multiplied by the factors of all methods.
    - A method's task losses replace the student's (:attr:`Method.task_losses`), for instance on other logits.
      The method has weighted them itself, so they are multiplied by the factors of the *other* methods.
    - What a proxy or a policy learns by (:attr:`Method.proxy_losses`) is not scaled.
    - All other losses of a method are multiplied by its scale, which schedules and the warm-up set.

    Only values whose names contain ``loss`` are losses, as in MMEngine; other values to log stay as they are.

    Args:
        student_losses: The student's losses: tensors or lists of tensors.
        method_losses: For every method, its losses and other values to log.
        student_task: For every method, its factor of the student's task losses; 0 in its first phase of
            training.
        scale: For every method, the scale of its losses.
        task_losses: For every method, the names of its task losses.
        proxy_losses: For every method, the names of the losses by which a proxy or a policy learns.

    Returns:
        dict: The student's losses under their names, and the methods' values as ``<method>.<name>``.
    """
    losses = _scaled(student_losses, math.prod(student_task.values()))
    for method, values in method_losses.items():
        others = math.prod(factor for other, factor in student_task.items() if other != method)
        factors = {name: scale[method] for name in values}
        factors.update({name: others for name in task_losses[method]})
        factors.update({name: 1.0 for name in proxy_losses[method]})
        for name, value in values.items():
            losses[f'{method}.{name}'] = _scaled({name: value}, factors[name])[name]
    return losses


def _scaled(losses: Mapping, factor: float) -> dict:
    """Multiply the losses in a dict, and leave other values to log as they are."""
    if factor == 1:
        return dict(losses)
    scaled = {}
    for name, value in losses.items():
        if 'loss' in name:
            if isinstance(value, (list, tuple)):
                value = [level * factor for level in value]
            else:
                value = value * factor
        scaled[name] = value
    return scaled
