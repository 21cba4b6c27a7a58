"""Proxies that are whole networks: a peer, and a teacher that goes on learning."""
import copy
from collections.abc import Mapping

import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..random_state import separate_random_state
from ..spots import (
    LogitLayout,
    Recorder,
    check_comparable,
    classify,
    is_two_stage,
    logit_layout,
    probe,
    resolve_spot,
)
from ..step import Step
from ..teachers import BatchConverter, load_strictly, read_teacher_config
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
    """A whole detector that is trained beside the student and judges the student's boxes.

    Args:
        cfg: Its model config.
        student: The student network.
        layout: How the student's logits are laid out.
        task: Whether it has its own task loss; without one, all that only that loss would train is frozen.
        scope: The scope of its config.
        weights: What to start from, instead of random weights.
    """

    def __init__(self, cfg: Mapping, student: nn.Module, layout: LogitLayout, task: bool,
                 scope: str = 'mmdet', weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        with DefaultScope.overwrite_default_scope(scope):
            self.detector = MMDET_MODELS.build(copy.deepcopy(cfg))
        self.initialised = weights is not None
        if weights is not None:
            load_strictly(self.detector, weights, "teacher's weights")
        own = logit_layout(self.detector, 'proxy')
        check_comparable(layout, own)
        self.convert = BatchConverter(student.data_preprocessor, self.detector.data_preprocessor)
        self.convert.keep_size = True
        self.student_spots = () if own.dense else ('rois', )
        if not task:
            place = resolve_spot(self.detector, 'cls_outputs', 'proxy')
            outputs = probe(self.detector, dict(seen=place), grad=True)['seen']
            logits = torch.cat([one.flatten() for one in own.logits(outputs)])
            freeze_what_logits_do_not_reach(self.detector, logits)

    def init_weights(self) -> None:
        if not self.initialised:
            super().init_weights()

    def forward(self, step: Step, task: bool) -> tuple[list, Tensor | None]:
        """See :meth:`Proxy.forward`."""
        shapes = [sample.img_shape for sample in step.data_samples]
        inputs = self.convert(step.inputs, shapes)
        with separate_random_state():  # its sampling and dropout must not shift the student's numbers
            if not task:
                return self._outputs(self.detector.extract_feat(inputs), step), None
            places = {
                spot: resolve_spot(self.detector, spot, 'proxy') for spot in ('features', 'cls_outputs')}
            with Recorder(self.detector, places) as recorder:
                losses = self.detector.loss(inputs, step.data_samples)
            total, _ = self.detector.parse_losses(losses)
            if not is_two_stage(self.detector):
                return recorder['cls_outputs'], total
            (features, *_) = recorder['features']
            return self._outputs(features, step), total

    def _outputs(self, features, step: Step) -> list:
        given = classify(self.detector, features, step.student_seen.get('rois'))
        return [(logits, ) for logits in given] if is_two_stage(self.detector) else given


@MODELS.register_module()
class PeerNetwork(Proxy):
    """A network that learns beside the student and from it (DML: Zhang et al., CVPR 2018).

    Its own task loss is on its own proposals; its logits are compared on the student's boxes. In the paper
    the two are updated in turns; here both move in one step.

    Args:
        config: Config of a detector (as for a teacher); the student's by default.
    """

    def __init__(self, config: str | dict | None = None) -> None:
        super().__init__()
        self.config = config

    def connect(self, student: nn.Module, teacher, student_cfg: dict, layout: LogitLayout,
                task: bool) -> None:
        cfg, scope = student_cfg, 'mmdet'
        if self.config is not None:
            whole = read_teacher_config(self.config)
            cfg, scope = whole.model, whole.get('default_scope', 'mmdet')
        self.network = Network(cfg, student, layout, task, scope)
        other = logit_layout(self.network.detector, 'peer').num_classes
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

    def connect(self, student: nn.Module, teacher, student_cfg: dict, layout: LogitLayout,
                task: bool) -> None:
        self.layout, self.teacher = layout, teacher
        if self.trainable == 'all':
            if task and teacher.class_indices is not None:
                raise MMKDError('A tuned teacher with other classes than the student has no labels to learn '
                                'from: leave out its own task loss (proxy_task=0).')
            self.network = Network(teacher.cfg.model, student, layout, task, teacher.scope,
                                   teacher.model.state_dict())
            self.student_spots = self.network.student_spots
            return
        self.teacher_spots = ('cls_inputs', )
        if task and not layout.dense:
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
            return self.teacher.in_students_outputs(outputs), loss
        inputs = step.teachers_seen[index]['cls_inputs']
        if self.trainable == 'head':
            outputs = self.teacher.in_students_outputs(run_heads(self.heads, inputs))
        else:
            outputs = self.teacher.run_frozen_head([(self.adapter(args[0]), ) for args in inputs])
        return outputs, classification_loss(self.layout, step, outputs) if task else None
