"""What is known of the public checkpoints of CRD's benchmark: names and shapes of their tensors."""
import json

import torch
from torch import Tensor

from tests.helpers.tiny import REPO

FACTS = json.loads((REPO / 'tests/helpers/data/crd_networks.json').read_text())
"""Per network: ``params``, ``feature_shapes`` of 32×32 images, and ``state_dict`` with names and shapes."""


def reference_weights(network: str, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights that keep features finite, under the names of the public checkpoints."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in FACTS[network]['state_dict'].items():
        normal = torch.randn(shape, generator=generator)
        if name.endswith('running_var') or (name.endswith('weight') and len(shape) == 1):
            weights[name] = 0.5 + torch.rand(shape, generator=generator)
        elif len(shape) == 1:
            weights[name] = 0.1 * normal
        else:
            weights[name] = normal * (2 / normal[0].numel())**0.5
    return weights
