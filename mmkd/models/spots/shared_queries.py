"""The same queries in two decoders: what the student predicts for the queries of its teacher."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from mmdet.models.detectors import DABDETR, DINO, DeformableDETR
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor

from ...errors import MMKDError
from ...random_state import separate_random_state
from .logits import LogitLayout
from .queries import head_outputs, matching_queries
from .query_match import HungarianMatch, QueryMatch, SampleMatch

if TYPE_CHECKING:
    from ..step import Step

QueryMatching = Literal['hungarian', 'shared']
"""Ways to compare queries, see :class:`~mmkd.models.spots.query_match.HungarianMatch` and
:class:`SharedQueries`."""

_END = " Use query_match='hungarian' instead."


class SharedQueries(QueryMatch):
    """The student's decoder answers the teacher's queries, so that both networks answer the same question.

    The teacher's reference boxes go through the student's decoder, on the student's image features, with the
    teacher's content queries where these mean the same: in decoders of one family and one width. Otherwise,
    the content is the student's: that of the student's queries in their order, or what it computes from the
    boxes (two-stage Deformable DETR). As if they were a denoising group, the shared queries and the student's
    do not see each other (KD-DETR, Wang et al., CVPR 2024).

    Raises:
        MMKDError: If the queries of one network mean nothing to the other.
    """

    student_spots = ('decoder_inputs', )
    teacher_spots = ('decoder_inputs', )

    def __init__(self, layout: LogitLayout, student: Any, teachers: Sequence[Any]) -> None:
        super().__init__(layout.without_proposals())  # those are at other places in the two networks
        if not teachers:
            raise MMKDError(f"query_match='shared' needs a teacher, whose queries the student answers.{_END}")
        self.teachers = list(teachers)
        for teacher in self.teachers:
            check_shareable(student, teacher.model)

    def step(self, step: Step, index: int) -> Step:
        key = ('shared queries', index)
        if key not in step.results:
            (student_inputs, ) = step.student_outputs['decoder_inputs']
            (teacher_inputs, ) = step.teacher_outputs[index]['decoder_inputs']
            teacher = self.teachers[index].model
            step.results[key] = answer(step.student, student_inputs, teacher, teacher_inputs)
        outputs, states = step.results[key]
        answers = dict(cls_outputs=[outputs], cls_inputs=[(states, )])
        return dataclasses.replace(step, student_outputs={**step.student_outputs, **answers})


def check_shareable(student: Any, teacher: Any) -> None:
    """Check that a detector can answer another detector's queries.

    Args:
        student: The detector that answers.
        teacher: The detector whose queries are shared.

    Raises:
        MMKDError: If it cannot.
    """
    for role, model in (('student', student), ('teacher', teacher)):
        if _reference_size(model) is None:
            raise MMKDError(f'The queries of the {role} {type(model).__name__} have no reference boxes that '
                            f"could be shared (query_match='shared').{_END}")
    sizes = [_reference_size(model) for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        kinds = ['boxes' if size == 4 else 'points' for size in sizes]
        raise MMKDError(f'The queries of the student refer to {kinds[0]} and those of the teacher to '
                        f"{kinds[1]}, so they cannot be shared (query_match='shared').{_END}")
    if sizes[0] == 2 and not _same_content(student, teacher):
        raise MMKDError('The queries of the student and of the teacher are learned in decoders of different '
                        f"families or widths, so they cannot be shared (query_match='shared').{_END}")


def answer(student: Any, student_inputs: Mapping, teacher: Any,
           teacher_inputs: Mapping) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run the teacher's queries through the student's decoder.

    Args:
        student: The detector that answers.
        student_inputs: The arguments of its decoder in this step, as recorded at ``decoder_inputs``.
        teacher: The detector whose queries are shared.
        teacher_inputs: The arguments of its decoder in this step.

    Returns:
        tuple: The head's outputs, as recorded at ``cls_outputs``, and the decoder's states ``(L, N, Q, C)``.
    """
    inputs = {**student_inputs, **_shared_inputs(student, student_inputs, teacher, teacher_inputs)}
    number = inputs['query'].shape[1]
    # Dropout must not change the student's random numbers.
    with separate_random_state(), _answering(student, number):
        states, references = student.decoder(**inputs)
        if isinstance(student, DeformableDETR) and not isinstance(student, DINO):
            references = [inputs['reference_points'], *references]
        output = student.bbox_head(states, references)
        return head_outputs(student.bbox_head, (states, references), output, None), states


def _shared_inputs(student: Any, student_inputs: Mapping, teacher: Any, teacher_inputs: Mapping) -> dict:
    """Return those arguments of the student's decoder that the shared queries replace."""
    query, boxes = teacher_inputs['query'], _reference_boxes(teacher, teacher_inputs)
    positions = teacher_inputs.get('query_pos')
    if not _same_content(student, teacher):
        query, positions = _student_content(student, student_inputs, boxes)
    inputs = dict(query=query, query_pos=positions, reference_points=boxes, self_attn_mask=None)
    return {name: value for name, value in inputs.items() if name in student_inputs}


def _student_content(student: Any, student_inputs: Mapping, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the student's content, and the positions where they are arguments, for some reference boxes."""
    logits = inverse_sigmoid(boxes)
    if hasattr(student, 'pos_trans_fc'):
        embedding = student.pos_trans_norm(student.pos_trans_fc(student.get_proposal_pos_embed(logits)))
        positions, query = embedding.chunk(2, dim=2)
        return query, positions
    number = student.num_queries if isinstance(student, DINO) else None
    query = matching_queries(student.bbox_head, student_inputs['query'], number)
    index = torch.arange(boxes.shape[1], device=query.device) % query.shape[1]
    return query[:, index], logits


def _reference_boxes(model: Any, inputs: Mapping) -> Tensor:
    """Return what queries refer to: boxes ``(N, Q, 4)`` or points ``(N, Q, 2)``, relative to the image."""
    return inputs['query_pos'].sigmoid() if isinstance(model, DABDETR) else inputs['reference_points']


def _reference_size(model: Any) -> int | None:
    if isinstance(model, DABDETR):
        return model.query_dim
    if isinstance(model, DeformableDETR):
        return 4 if model.as_two_stage else 2
    return None


def _same_content(student: Any, teacher: Any) -> bool:
    """Return whether the content queries of two networks of one kind of reference mean the same."""
    return type(student.decoder) is type(teacher.decoder) and student.embed_dims == teacher.embed_dims


@contextmanager
def _answering(model: Any, number: int) -> Iterator[None]:
    """Let DDQ, which has other queries in training, treat a number of queries as in inference."""
    if not hasattr(model, 'cache_dict'):
        yield
        return
    cache = dict(model.cache_dict)
    modes = [(part, part.training) for part in (model.decoder, model.bbox_head)]
    try:
        model.cache_dict['dis_query_info'] = [0, number]
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training
        model.cache_dict.update(cache)



def build_match(query_match: QueryMatching, layout: LogitLayout, student: Any,
                teachers: Sequence[Any]) -> SampleMatch:
    """Build what decides which predictions are compared.

    Args:
        query_match: For query-based detectors, the way of comparison.
        layout: The layout of the student's logits.
        student: The student network.
        teachers: The :class:`~mmkd.models.teachers.Teacher` objects.

    Raises:
        MMKDError: If these networks cannot be compared in this way.
    """
    if not layout.of_queries:
        return SampleMatch(layout)
    if query_match == 'shared':
        return SharedQueries(layout, student, teachers)
    return HungarianMatch(layout, student)
