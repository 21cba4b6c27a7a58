"""Features between detectors of different families, and the memory of query-based detectors."""
import pytest
import torch

from mmkd.errors import MMKDError
from mmkd.models.methods.feature_distill import _pairs
from tests.helpers.families import detector
from tests.helpers.queries import STOCK, query_batch, query_detector
from tests.helpers.tiny import build, distill


def config(family: str, size: int = 8, **settings):
    return (query_detector if family in STOCK else detector)(family, size, **settings)


def make(student: str, teacher: str, method: str, width: int = 64, **settings):
    teacher_cfg = config(teacher, 16, **(dict(width=width) if teacher in STOCK else {}))
    return build(distill(config(student), teacher_cfg, feature=dict(type=f'mmkd.{method}', **settings)))


def take_steps(model, steps: int = 2) -> dict:
    """Take real steps; every parameter gets a gradient, and only the method's loss is returned."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for step in range(steps):
        losses = model(**query_batch(model, step), mode='loss')
        total, _ = model.parse_losses(losses)
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        optimizer.step()
    return losses['feature.loss_feature']


CROSS = [('retinanet', 'dino', 4), ('deformable', 'faster_rcnn', 4), ('faster_rcnn', 'dino', 4),
         ('retinanet', 'faster_rcnn', 4), ('detr', 'retinanet', 1)]
"""Students, teachers, and the number of strides that both have."""


@pytest.mark.slow
@pytest.mark.parametrize(('student', 'teacher', 'levels'), CROSS)
def test_families_teach_one_another_at_the_neck(student, teacher, levels):
    model = make(student, teacher, 'PKD')
    method = model.mmkd.methods['feature']
    assert [len(connectors) for connectors in method.connectors] == [levels]
    assert take_steps(model) > 0


def test_levels_are_paired_by_stride():
    model = make('retinanet', 'faster_rcnn', 'PKD')
    # P3 to P6 of a RetinaNet with P3 to P7, of a Faster R-CNN with P2 to P6.
    assert model.mmkd.methods['feature'].pairs == [[(0, 1), (1, 2), (2, 3), (3, 4)]]
    student, teacher = model.mmkd.methods['feature'].shapes
    assert [shape[1:] for shape in student] == [shape[1:] for shape in teacher]


@pytest.mark.parametrize(('student', 'teacher', 'expected'), [
    ([(8, 4, 4), (8, 2, 2)], [(3, 4, 4), (3, 2, 2)], None),  # as they are
    ([(8, 8, 8), (8, 4, 4)], [(3, 2, 2), (3, 1, 1)], None),  # no common size: in order, as the loss resizes
    ([(8, 8, 8), (8, 4, 4)], [(3, 4, 4)], [(1, 0)]),
    ([(8, 8, 8), (8, 4, 4)], [(3, 4, 4), (3, 8, 8)], [(0, 1), (1, 0)]),
    ([(8, 4, 4), (8, 4, 4)], [(3, 4, 4), (3, 4, 4)], None),  # sizes that do not tell the levels apart
    ([(8, )], [(3, )], None)])
def test_pairs(student, teacher, expected):
    assert _pairs(student, teacher) == expected


MEMORY = [('deformable', method) for method in ('PKD', 'CWD', 'FGD', 'MGD', 'FitNet')]
MEMORY += [('detr', 'PKD'), ('dino', 'CWD')]


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'method'), MEMORY)
def test_the_memory_is_distilled_level_by_level(family, method):
    settings = dict(connector=dict(type='mmkd.ConvConnector', kernel_size=1)) if method == 'FitNet' else {}
    model = make(family, family, method, spot='memory', **settings)
    assert take_steps(model) > 0
    assert len(model.mmkd.methods['feature'].shapes[0]) == (1 if family == 'detr' else 4)


def test_the_memory_of_equal_networks_is_equal():
    model = build(distill(query_detector('deformable'), query_detector('deformable'),
                          feature=dict(type='mmkd.FitNet', spot='memory', connector=None)))
    model.load_state_dict(model.mmkd.teacher.model.state_dict(), strict=False)
    data = query_batch(model)
    model.eval()  # without dropout and batch statistics
    model.training = True
    assert model(**data, mode='loss')['feature.loss_feature'] < 1e-6
    with torch.no_grad():
        model.encoder.layers[-1].norms[-1].weight.mul_(2.0)
    assert model(**data, mode='loss')['feature.loss_feature'] > 1e-3


def test_a_memory_teaches_a_neck():
    model = make('retinanet', 'dino', 'PKD', teacher_spot='memory')
    assert model.mmkd.methods['feature'].pairs == [[(0, 0), (1, 1), (2, 2), (3, 3)]]
    assert take_steps(model, 1) > 0


def test_features_of_queries_are_refused():
    with pytest.raises(MMKDError, match="'cls_inputs' of the student DistilledDINO belongs to queries"):
        make('dino', 'dino', 'PKD', spot='cls_inputs')


def test_pairs_whose_logits_cannot_be_compared_say_what_can_be_done():
    with pytest.raises(MMKDError, match='with PKD, or final detections with PredictionKD'):
        make('retinanet', 'dino', 'KD')
