"""The methods of a training in words."""
from .base import Method
from .feature_distill import FeatureDistill
from .logit_distill import LogitDistill
from .mixins import PhasedMethod
from .proxy_distill import ProxyDistill
from .sakd import SpotAdaptiveDistill


def describe(method: Method) -> str:
    """Return what a method does and its settings in one line, such as ``'KD: KL of class logits, weight 1'``.

    Args:
        method: A method that has been built.
    """
    parts = [f'{type(method).__name__}: {_what(method)}']
    if method.student_task != 1 and not method.task_losses:
        parts.append(f'weight of the task {method.student_task:g}')
    if isinstance(method, PhasedMethod) and method.first_phase_epochs:
        parts.append(f'a first phase of {method.first_phase_epochs} epochs')
    if method.warmup:
        parts.append(f'warm-up over {100 * method.warmup:.3g} % of the training')
    if method.is_balanced:
        parts.append(f'balanced to {method.share:g} times the gradient of the task')
    return '; '.join(parts)


def _what(method: Method) -> str:
    if isinstance(method, SpotAdaptiveDistill):
        parts = [_what(method.inner)] if method.inner else []
        if method.kd:
            parts.append(f'KL of class logits, weight {method.kd.proxy_to_student:g}, '
                         f'temperature {method.temperature:g}')
        return f'{", and ".join(parts)}; strategy {method.strategy!r} for {", ".join(method.spot_names)}'
    if isinstance(method, FeatureDistill):
        loss = method.losses[0]
        words = f'{method.name} of features at {", ".join(method.student_spots)}'
        if method.teacher_spots != method.student_spots:
            words += f' (teacher: {", ".join(method.teacher_spots)})'
        if method.connectors:
            connectors = dict.fromkeys(type(connector).__name__ for connector in method.connectors[0])
            words += f' through {", ".join(connectors)}'
        return f'{words}, weight {loss.weight:g}'
    if isinstance(method, LogitDistill):
        return f'{method.name} of class logits, weight {method.weight:g}'
    if isinstance(method, ProxyDistill):
        return _proxy_terms(method)
    settings = [f'{name} {value:g}' for name, value in vars(method).items()
                if isinstance(value, float) and ('weight' in name or 'temperature' in name)]
    return ', '.join([f'at {", ".join(method.student_spots)}', *settings])


def _proxy_terms(method: ProxyDistill) -> str:
    """Return the proxy, the weights of the equation, and how logits are compared."""
    source = f'a {type(method.proxies[0]).__name__}' if method.proxies else 'the teacher'
    words = [f'KL of class logits from {source}, weight {method.proxy_to_student:g}']
    if method.proxies:
        terms = {'from the teacher': method.teacher_to_proxy, 'from the student': method.student_to_proxy,
                 'from labels': method.proxy_task}
        learned = [f'{source} with weight {weight:g}' for source, weight in terms.items() if weight]
        words.append(f'which learns {", ".join(learned) or "nothing"}')
    words.append(f'temperature {method.temperature:g}')
    if method.standardize:
        words.append('standardized')
    if not method.layout.of_images:
        words.append(f'{method.sample_weight} weights of boxes or locations')
    return ', '.join(words)
