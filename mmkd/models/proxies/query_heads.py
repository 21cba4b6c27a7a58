"""Copies of the class branches of query-based detectors, and layers on the states of their decoders."""
import copy
import itertools
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule, ModuleList, bias_init_with_prob
from torch import Tensor, nn

from ..spots import LogitLayout, queries_of
from ..spots.queries import class_branches
from ..step import Step
from ..teachers import Teacher


class QueryClassifiers(BaseModule):
    """Copies of a detector's class branches for its last decoder layers.

    Args:
        model: The detector.
        layout: The layout of the logits that are compared; its layers are counted.
        init: The initial weights: ``'random'``, or ``'teacher'`` for the detector's.
    """

    def __init__(self, model: nn.Module, layout: LogitLayout, init: str) -> None:
        super().__init__()
        number = len(layout.without_proposals().stage_loss_weights)
        self.names = class_branches(model)[-number:]
        unique = list(dict.fromkeys(self.names))
        branches = [copy.deepcopy(model.get_submodule(name)).requires_grad_(True) for name in unique]
        self.branches = ModuleList(branches)
        self.order = [unique.index(name) for name in self.names]
        self.init = init
        self.prior = layout.activation == 'sigmoid'

    def init_weights(self) -> None:
        """Initialize random weights as MMDetection's heads do; weights of the detector stay."""
        if self.init == 'random':
            for branch in self.branches:
                branch.reset_parameters()
                if self.prior:
                    nn.init.constant_(branch.bias, bias_init_with_prob(0.01))

    def forward(self, states: Tensor) -> Tensor:
        """Classify the last of the decoder's states ``(L, N, Q, C)``.

        Returns:
            Tensor: Logits ``(L', N, Q, K)``.
        """
        states = states[-len(self.order):]
        return torch.stack([self.branches[index](state)
                            for index, state in zip(self.order, states, strict=True)])

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights by the names that they have in the detector."""
        return {f'{name}.{key}': value for name, index in zip(self.names, self.order, strict=True)
                for key, value in self.branches[index].state_dict().items()}


class StateFusion(BaseModule):
    r"""Fuses the states of every decoder layer with those of the layer before.

    .. math:: x_l = f_5( f_1(F_{l-1}) + f_2(F_l) )

    f₁, f₂ and f₅ are linear layers with layer norm and ReLU, in place of the convolutions of
    :class:`~mmkd.models.proxies.fusion.PyramidFusion`. All decoder layers share them.

    Args:
        channels: The number of channels C.
        num_layers: The number of decoder layers L; f₁ is for several.
    """

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        for name in ('f1', 'f2', 'f5') if num_layers > 1 else ('f2', 'f5'):
            layer = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU())
            self.add_module(name, layer)

    def forward(self, states: Tensor) -> Tensor:
        """Fuse states ``(L, N, Q, C)``; their shape stays."""
        fused = [self.f2(states[0])]
        for earlier, later in itertools.pairwise(states):
            fused.append(self.f1(earlier) + self.f2(later))
        return torch.stack([self.f5(layer) for layer in fused])


class StateAdapter(BaseModule):
    """A small residual transformation of the decoder's states, which starts as the identity.

    Args:
        channels: The number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, channels)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Transform states ``(L, N, Q, C)``; their shape stays."""
        return states + self.second(self.first(states).relu())


def student_query_outputs(step: Step, logits: Tensor) -> Sequence:
    """Return head outputs with other logits for the student's queries, ``(L, N, Q, K)``."""
    return _replaced(step.student_outputs['cls_outputs'], logits)


def teacher_query_outputs(step: Step, index: int, teacher: Teacher, logits: Tensor) -> Sequence:
    """Return head outputs, in the student's classes, with other logits for the teacher's queries.

    Args:
        step: The training step.
        index: The index of the teacher.
        teacher: The teacher.
        logits: Logits in the teacher's classes, ``(L, N, Q, K)``.
    """
    return teacher.class_mapping.outputs(_replaced(step.teacher_outputs[index]['cls_outputs'], logits))


def _replaced(outputs: Sequence, logits: Tensor) -> list[tuple[Tensor, ...]]:
    _, boxes, weights = queries_of(outputs)
    return [(logits, boxes[-len(logits):].detach(), weights[-len(logits):])]
