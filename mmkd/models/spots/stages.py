"""The stages of a convolutional network."""
import torch
from torch import Tensor, nn

from ...errors import MMKDError
from .probing import probe
from .resolve import named_spots


def resolution_stages(model: nn.Module, role: str, number: int) -> list[tuple[str, int]]:
    """Find where a network gives its last map of every resolution.

    Args:
        model: The network.
        role: How messages call it.
        number: How many stages are wanted, counted from the end.

    Returns:
        list: Name of a module and number of channels, for each of the last ``number`` resolutions.

    Raises:
        MMKDError: If there are fewer.
    """
    calls = []  # of all modules that map a feature map to one, in the order in which they end

    def note(name):
        def hook(module, args, output):
            if args and _is_map(args[0]) and _is_map(output):
                calls.append((name, args[0].shape[-2:], output))
        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        probe(model, dict(seen=named_spots(model)['cls_logits']))
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _, _ in calls]
    found = {}
    for name, _, output in calls:
        size = output.shape[-2:]
        # A module that goes on to another resolution may first do something at the old one.
        leaves = any(name.startswith(f'{other}.') and before == size != after.shape[-2:]
                     for other, before, after in calls)
        if names.count(name) == 1 and not leaves and max(size) > 1:
            found[size] = (name, output.shape[1])
    sizes = sorted(found, reverse=True)[-number:]
    if len(sizes) < number:
        raise MMKDError(f'The {role} {type(model).__name__} has feature maps of {len(found)} resolutions; '
                        f'{number} are needed here: a convolutional network with that many stages.')
    return [found[size] for size in sizes]


def last_stage(backbone: nn.Module) -> str:
    """Return the name of a backbone's last stage.

    Raises:
        MMKDError: If the backbone does not say what its stages are.
    """
    if hasattr(backbone, 'stages') and hasattr(backbone, 'tail'):
        return backbone.stages()[-1][0]
    if getattr(backbone, 'res_layers', None):
        return backbone.res_layers[-1]
    raise MMKDError(
        f'{type(backbone).__name__} does not say what its stages are; MMPretrain\'s ResNet family does, and '
        'so does any backbone with the methods stages() and tail() of '
        'mmkd.models.backbones.StagedBackbone.')


def run_last_stage(backbone: nn.Module, features: Tensor) -> Tensor:
    """Run the last stage of a backbone, and what follows it, on what it is given."""
    features = backbone.get_submodule(last_stage(backbone))(features)
    return backbone.tail(features) if hasattr(backbone, 'tail') else features


def keep_last_stage(backbone: nn.Module, features: Tensor) -> None:
    """Take all out of a backbone that :func:`run_last_stage` does not run.

    Args:
        backbone: The backbone.
        features: Something that its last stage can be run on.
    """
    called = set()
    handles = [module.register_forward_hook(lambda *_, name=name: called.add(name))
               for name, module in backbone.named_modules() if name]
    try:
        with torch.no_grad():
            run_last_stage(backbone, features)
    finally:
        for handle in handles:
            handle.remove()
    _keep(backbone, '', called)


def _keep(module: nn.Module, prefix: str, names: set[str]) -> None:
    for name, child in list(module.named_children()):
        if any(other.startswith(f'{prefix}{name}.') for other in names) and f'{prefix}{name}' not in names:
            _keep(child, f'{prefix}{name}.', names)
        elif f'{prefix}{name}' not in names:
            setattr(module, name, nn.Identity())


def _is_map(value) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4
