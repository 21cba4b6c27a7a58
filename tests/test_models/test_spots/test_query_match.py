"""Which queries of two detectors are compared, and what the student answers to the teacher's."""
import types

import pytest
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.registry import MODELS, init_default_scope
from scipy.optimize import linear_sum_assignment

from mmkd.errors import MMKDError
from mmkd.models.spots import LogitLayout, Recorder, logit_layout, queries_of, record, resolve_spot
from mmkd.models.spots.queries import Queries, blank_samples
from mmkd.models.spots.query_match import HungarianMatch, match_queries, soft_assigner
from mmkd.models.spots.shared_queries import answer, check_shareable
from mmkd.models.step import Step
from tests.helpers.queries import STOCK, query_batch, query_detector
from tests.helpers.tiny import build

SHARING = ('dab', 'deformable', 'refine', 'two_stage', 'dino', 'ddq')


def model_of(family: str, seed: int = 0, **settings):
    """Return a detector whose queries predict different boxes and classes."""
    init_default_scope('mmdet')
    model = build(query_detector(family, **settings), seed)
    with torch.no_grad():
        for name, parameter in model.bbox_head.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 * (name.endswith('weight')))
    return model.eval()


def recorded(model, *spots, size=64):
    torch.manual_seed(3)
    inputs = torch.randn(2, 3, size, size)
    points = {spot: resolve_spot(model, spot, 'model') for spot in spots}
    with torch.no_grad():
        return inputs, record(model, points, inputs)


def random_queries(number: int, classes: int, seed: int) -> Queries:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(number, 4, generator=generator) * 0.5 + 0.1
    return Queries(2 * torch.randn(number, classes, generator=generator), boxes, torch.ones(number))


def independent_cost(family: str, student: Queries, teacher: Queries) -> torch.Tensor:
    """The match costs of the stock configs in plain loops over classes."""
    softmax = family == 'detr'
    p, q = ((x.logits.softmax(-1) if softmax else x.logits.sigmoid()).double() for x in (student, teacher))
    if softmax:
        classes = -sum(p[:, None, k] * q[None, :, k] for k in range(p.shape[1]))
    else:
        per_class = 0.25 * (1 - p)**2 * -torch.log(p + 1e-12) - 0.75 * p**2 * -torch.log(1 - p + 1e-12)
        classes = 2 * sum(per_class[:, None, k] * q[None, :, k] for k in range(p.shape[1]))
    distance = (student.boxes[:, None] - teacher.boxes[None]).abs().sum(-1)
    overlap = bbox_overlaps(*(bbox_cxcywh_to_xyxy(x.boxes) for x in (student, teacher)), mode='giou')
    return classes + 5 * distance.double() - 2 * overlap.double()


@pytest.mark.parametrize('family', ['detr', 'dino'])
@pytest.mark.parametrize(('students', 'teachers'), [(9, 9), (12, 7), (7, 12)])
def test_the_match_is_that_of_an_independent_assignment(family, students, teachers):
    head = MODELS.build(query_detector(family)).bbox_head
    activation = 'softmax' if family == 'detr' else 'sigmoid'
    student, teacher = random_queries(students, 4, 0), random_queries(teachers, 4, 1)
    match = match_queries(soft_assigner(head.assigner), student, teacher, (80, 120), activation)
    rows, columns = linear_sum_assignment(independent_cost(family, student, teacher).numpy())
    expected = torch.full((students, ), -1)
    expected[rows] = torch.as_tensor(columns)
    assert torch.equal(match, expected)
    assert sum(match >= 0) == min(students, teachers)


def test_discarded_queries_have_no_partner():
    head = MODELS.build(query_detector('dino')).bbox_head
    student, teacher = random_queries(6, 3, 0), random_queries(6, 3, 1)
    teacher.weights[[1, 4]] = 0
    student.weights[2] = 0
    match = match_queries(soft_assigner(head.assigner), student, teacher, (80, 120), 'sigmoid')
    assert match[2] == -1 and not {1, 4} & set(match.tolist())
    assert sum(match >= 0) == 4


def test_half_precision_does_not_change_the_match():
    head = MODELS.build(query_detector('dino')).bbox_head
    student, teacher = (list(random_queries(60, 8, seed)) for seed in (0, 1))
    for queries in (student, teacher):  # only classes decide, and these are alike
        queries[0], queries[1] = queries[0] / 20, torch.full_like(queries[1], 0.5)
    arguments = (soft_assigner(head.assigner), Queries(*student), Queries(*teacher), (80, 120), 'sigmoid')
    expected = match_queries(*arguments)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(match_queries(*arguments), expected)


def step_of(model, outputs):
    samples = [types.SimpleNamespace(img_shape=(64, 64))] * 2
    return Step(model, torch.zeros(2, 3, 64, 64), samples, dict(cls_outputs=outputs), [])


@pytest.mark.parametrize('family', STOCK)
def test_a_permuted_teacher_is_put_in_order(family):
    model = model_of(family)
    _, outputs = recorded(model, 'cls_outputs')
    queries = queries_of(outputs['cls_outputs'])
    assert not torch.equal(queries.boxes[-1, 0, 0], queries.boxes[-1, 0, 1])
    order = torch.randperm(queries.boxes.shape[2], generator=torch.Generator().manual_seed(0))
    permuted = [tuple(value[:, :, order] for value in queries)]
    layout = logit_layout(model, 'student')
    match = HungarianMatch(layout, model)
    step = step_of(model, outputs['cls_outputs'])
    aligned = queries_of(match.align(permuted, match.match(step, permuted)))
    kept = queries.weights > 0  # DDQ discards some
    assert kept.float().mean() > 0.3
    for got, expected in zip(aligned, queries, strict=True):
        torch.testing.assert_close(got[kept], expected[kept], rtol=1e-3, atol=1e-3)  # twins may be exchanged


def test_a_student_with_more_queries_learns_no_object():
    student, teacher = model_of('refine', queries=9), model_of('refine', 1, queries=5, layers=1)
    (_, own), (_, other) = (recorded(model, 'cls_outputs') for model in (student, teacher))
    layout = logit_layout(student, 'student').common(logit_layout(teacher, 'teacher'))
    assert layout.stage_loss_weights == (1.0, )
    match = HungarianMatch(layout, student)
    index = match.match(step_of(student, own['cls_outputs']), other['cls_outputs'])
    aligned = queries_of(match.align(other['cls_outputs'], index))
    assert (index < 0).sum(dim=2).tolist() == [[4, 4]]
    torch.testing.assert_close(aligned.logits[index < 0].sigmoid(), torch.full((8, 3), 0.01))
    assert bool((aligned.weights[index < 0] == 0.1).all())
    assert bool((aligned.weights[index >= 0] == 1).all())


def test_no_object_of_a_softmax_is_the_background():
    layout = LogitLayout('softmax', 3, of_queries=True)
    match = object.__new__(HungarianMatch)
    match.layout = layout
    probabilities = match._no_object(torch.zeros(1, 1, 2, 4)).softmax(dim=-1)
    assert probabilities.shape == (1, 1, 1, 4)
    assert probabilities[0, 0, 0, 3].item() == pytest.approx(0.99)


# Denoising


@pytest.mark.parametrize('family', ['dino', 'ddq'])
def test_queries_of_denoising_groups_are_left_out(family):
    model = model_of(family).train()
    points = dict(outputs=resolve_spot(model, 'cls_outputs', 'student'),
                  states=resolve_spot(model, 'cls_inputs', 'student'))
    batch = query_batch(model)
    split = []
    stock = type(model.bbox_head).split_outputs
    model.bbox_head.split_outputs = lambda *args: split.append(stock(*args)) or split[-1]
    with Recorder(model, points) as recorder:
        model.loss(batch['inputs'], batch['data_samples'])
    (matching, boxes, denoising, _), = split
    queries = queries_of(recorder['outputs'])
    assert denoising.shape[2] > 0 and queries.logits.shape[2] == model.num_queries
    proposals = family == 'dino'
    assert torch.equal(queries.logits[proposals:], matching[:, :, :model.num_queries])
    assert torch.equal(queries.boxes[proposals:], boxes[:, :, :model.num_queries])
    ((states, ), ) = recorder['states']
    assert states.shape[:3] == queries.logits[proposals:].shape[:3]


def test_proposals_are_those_of_the_encoders_loss():
    model = model_of('dino').train()
    seen = []
    stock = model.bbox_head.loss_by_feat
    model.bbox_head.loss_by_feat = lambda *args, **kwargs: seen.append(args[2:4]) or stock(*args, **kwargs)
    batch = query_batch(model)
    with Recorder(model, dict(outputs=resolve_spot(model, 'cls_outputs', 'student'))) as recorder:
        model.loss(batch['inputs'], batch['data_samples'])
    queries = queries_of(recorder['outputs'])
    ((scores, boxes), ) = seen
    assert torch.equal(queries.logits[0], scores)
    assert torch.equal(queries.boxes[0], boxes)


# Shared queries


@pytest.mark.parametrize('family', SHARING)
def test_answers_are_those_of_the_stock_decoder(family):
    student, teacher = model_of(family), model_of(family, 1, size=16, queries=7)
    inputs, own = recorded(student, 'decoder_inputs')
    _, other = recorded(teacher, 'decoder_inputs')
    (shared, ) = other['decoder_inputs']
    with torch.no_grad():
        (logits, boxes, *_), _ = answer(student, own['decoder_inputs'][0], teacher, shared)

    # The whole stock network, which only takes its queries from elsewhere.
    stock_pre_decoder = student.pre_decoder

    def pre_decoder(*args, **kwargs):
        decoder_inputs, head_inputs = stock_pre_decoder(*args, **kwargs)
        decoder_inputs.update({name: shared[name] for name in ('query', 'query_pos', 'reference_points')
                               if name in decoder_inputs})
        return decoder_inputs, head_inputs

    student.pre_decoder = pre_decoder
    if family == 'ddq':
        student.cache_dict['dis_query_info'] = [0, 7]
        student.num_queries = 7
    with torch.no_grad():
        features = student.extract_feat(inputs)
        expected = student.bbox_head(*student.forward_transformer(features, blank_samples(inputs)).values())
    torch.testing.assert_close(logits, expected[0])
    torch.testing.assert_close(boxes, expected[1])


@pytest.mark.parametrize(('family', 'other'), [
    ('dino', 'dino'), ('two_stage', 'dino'), ('dino', 'two_stage'), ('ddq', 'dino'), ('dab', 'dino')])
def test_boxes_are_shared_without_content_where_it_means_something_else(family, other):
    student, teacher = model_of(family, width=64), model_of(other, 1, queries=15)
    _, own = recorded(student, 'decoder_inputs')
    _, shared = recorded(teacher, 'decoder_inputs')
    check_shareable(student, teacher)
    with torch.no_grad():
        (logits, boxes, *_), states = answer(student, own['decoder_inputs'][0], teacher,
                                             shared['decoder_inputs'][0])
    assert logits.shape == (2, 2, 15, 3) and boxes.shape == (2, 2, 15, 4)
    assert states.shape == (2, 2, 15, student.embed_dims)
    assert bool(torch.isfinite(logits).all())


def test_ddq_trains_on_after_an_answer():
    """What the shared queries change inside of DDQ is restored."""
    student, teacher = model_of('ddq').train(), model_of('ddq', 1)
    batch = query_batch(student)
    with Recorder(student, dict(inputs=resolve_spot(student, 'decoder_inputs', 'student'))) as recorder:
        student.loss(batch['inputs'], batch['data_samples'])
    before = dict(student.cache_dict)
    _, other = recorded(teacher, 'decoder_inputs')
    answer(student, recorder['inputs'][0], teacher, other['decoder_inputs'][0])
    assert all(student.cache_dict[key] is value for key, value in before.items())
    assert student.decoder.training and student.bbox_head.training


@pytest.mark.parametrize(('student', 'teacher', 'message'), [
    ('detr', 'dino', 'student DETR have no reference boxes.*hungarian'),
    ('dino', 'conditional', 'teacher ConditionalDETR have no reference boxes'),
    ('deformable', 'dino', 'student refer to points and those of the teacher to boxes'),
])
def test_queries_that_cannot_be_shared(student, teacher, message):
    models = [MODELS.build(query_detector(family)) for family in (student, teacher)]
    with pytest.raises(MMKDError, match=message):
        check_shareable(*models)


def test_learned_points_of_another_width_cannot_be_shared():
    models = [MODELS.build(query_detector('deformable', width=width)) for width in (32, 64)]
    with pytest.raises(MMKDError, match='different families or widths'):
        check_shareable(*models)
