"""Proxies that are whole networks: a peer, and a teacher that goes on learning."""
import copy
import dataclasses
from collections.abc import Mapping

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import separate_random_state
from ...registry import MODELS
from ..spots import (
    LogitLayout,
    Recorder,
    check_comparable,
    classify,
    library_scope,
    logit_layout,
    probe,
    record,
    resolve_spot,
)
from ..step import Step
from ..teachers import BatchConverter, image_shapes, load_strictly, read_teacher_config
from .base import Proxy
from .heads import (
    build_heads,
    classification_loss,
    freeze_what_logits_do_not_reach,
    load_head_weights,
    run_heads,
)
from .pyramid_fusion import build_adapter


class Network(BaseModule):
    """A whole network that is trained beside the student and judges the student's images or boxes.

    Args:
        cfg: Its model config.
        student: The student network.
        layout: How the student's logits are laid out.
        task: Whether it has its own task loss; without one, all that only that loss would train is frozen.
        scope: The scope of its config, if it is not the student's library's.
        weights: What to start from, instead of random weights.
    """

    def __init__(self, cfg: Mapping, student: nn.Module, layout: LogitLayout, task: bool,
                 scope: str | None = None, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        with DefaultScope.overwrite_default_scope(scope or library_scope(student)):
            self.model = MMENGINE_MODELS.build(copy.deepcopy(cfg))
        self.initialized = weights is not None
        if weights is not None:
            load_strictly(self.model, weights, "teacher's weights")
        self.layout = logit_layout(self.model, 'proxy')
        check_comparable(layout, self.layout)
        self.layout = dataclasses.replace(self.layout, standardized_task=layout.standardized_task)
        self.convert = BatchConverter(student.data_preprocessor, self.model.data_preprocessor)
        self.convert.keep_size = True
        self.student_spots = ('rois', ) if self.layout.of_boxes else ()
        if not task:
            seen = probe(self.model, self._points('cls_outputs'), grad=True)['cls_outputs']
            logits = torch.cat([one.flatten() for one in self.layout.logits(seen)])
            freeze_what_logits_do_not_reach(self.model, logits)

    def init_weights(self) -> None:
        if not self.initialized:
            super().init_weights()

    def forward(self, step: Step, task: bool) -> tuple[list, Tensor | None]:
        """See :meth:`Proxy.forward`."""
        inputs = self.convert(step.inputs, image_shapes(self.model, step.inputs, step.data_samples))
        rois = step.student_outputs.get('rois')
        with separate_random_state():  # its sampling and dropout must not shift the student's numbers
            if not task or self.layout.standardized_task:
                outputs = record(self.model, self._points('cls_outputs'), inputs, rois)['cls_outputs']
                # The network's own loss() compares labels with logits as they come.
                own = dataclasses.replace(step, student=self.model)
                return outputs, classification_loss(self.layout, own, outputs) if task else None
            spots = ('features', ) if self.layout.of_boxes else ('cls_outputs', )
            with Recorder(self.model, self._points(*spots)) as recorder:
                losses = self.model.loss(inputs, step.data_samples)
            total, _ = self.model.parse_losses(losses)
            if not self.layout.of_boxes:
                return recorder['cls_outputs'], total
            (features, *_) = recorder['features']
            return [(logits, ) for logits in classify(self.model, features, rois)], total

    def _points(self, *spots: str) -> dict:
        return {spot: resolve_spot(self.model, spot, 'proxy') for spot in spots}


@MODELS.register_module()
class PeerNetwork(Proxy):
    """A network that learns beside the student and from it (DML: Zhang et al., CVPR 2018).

    A detector's own task loss is on its own proposals; its logits are compared on the student's boxes. In
    the paper the two are updated in turns; here both move in one step.

    Args:
        config: Config of a network (as for a teacher); the student's by default.
    """

    def __init__(self, config: str | dict | None = None) -> None:
        super().__init__()
        self.config = config

    def build(self, student: nn.Module, teacher, student_cfg: dict, layout: LogitLayout,
                task: bool) -> None:
        cfg, scope = student_cfg, None
        if self.config is not None:
            whole = read_teacher_config(self.config)
            cfg, scope = whole.model, whole.default_scope
        self.network = Network(cfg, student, layout, task, scope)
        other = self.network.layout.num_classes
        if other != layout.num_classes:
            raise MMKDError(f'The peer knows {other} classes and the student {layout.num_classes}.')
        self.student_spots = self.network.student_spots

    def forward(self, step: Step, index: int, task: bool) -> tuple[list, Tensor | None]:
        return self.network(step, task)


@MODELS.register_module()
class TunedTeacher(Proxy):
    """The teacher itself, which goes on learning (KD†, the online form of KD in the SHAKE paper).

    It starts from the teacher's weights; the frozen teacher stays as it is.

    Args:
        trainable: ``'all'``: the whole network. ``'head'`` ("F"): its classification head, on its frozen
            features. ``'adapter'`` ("G"): a small transformation of its frozen features, which starts as
            the identity, under its frozen head.
    """

    needs_teacher = True

    def __init__(self, trainable: str = 'all') -> None:
        super().__init__()
        if trainable not in ('all', 'head', 'adapter'):
            raise MMKDError("TunedTeacher knows trainable='all', 'head' and 'adapter', not "
                            f'{trainable!r}.')
        self.trainable = trainable

    def build(self, student: nn.Module, teacher, student_cfg: dict, layout: LogitLayout,
                task: bool) -> None:
        self.layout, self.teacher = layout, teacher
        if self.trainable == 'all':
            if task and not teacher.class_mapping.is_identity:
                raise MMKDError('A tuned teacher with other classes than the student has no labels to learn '
                                'from: leave out its own task loss (proxy_task=0).')
            self.network = Network(teacher.cfg.model, student, layout, task, teacher.scope,
                                   teacher.model.state_dict())
            self.student_spots = self.network.student_spots
            return
        self.teacher_spots = ('cls_inputs', )
        if task and layout.of_boxes:
            self.student_spots = ('cls_targets', )
        if self.trainable == 'head':
            own = logit_layout(teacher.model, 'teacher')
            self.heads = build_heads(teacher.model, teacher.cfg.model, own, teacher.scope)
            load_head_weights(self.heads, teacher.model)
        else:
            self.adapter = build_adapter(teacher.model)

    def init_weights(self) -> None:
        """Keep the teacher's weights."""

    def forward(self, step: Step, index: int, task: bool) -> tuple[list, Tensor | None]:
        if self.trainable == 'all':
            outputs, loss = self.network(step, task)
            return self.teacher.class_mapping.outputs(outputs), loss
        inputs = step.teacher_outputs[index]['cls_inputs']
        if self.trainable == 'head':
            outputs = self.teacher.class_mapping.outputs(run_heads(self.heads, inputs))
        else:
            outputs = self.teacher.run_frozen_head([(self.adapter(args[0]), ) for args in inputs])
        return outputs, classification_loss(self.layout, step, outputs) if task else None
