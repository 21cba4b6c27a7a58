"""Every detector family with every way of who teaches: steps, gradients, processes, checkpoints."""
import copy
import functools

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS, init_default_scope

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from tests.helpers.families import CLASSES, PROXY_METHODS, STOCK, TWO_STAGE, classifier_parts, detector
from tests.helpers.tiny import build, distill
from tests.helpers.two_processes import run_in_two_processes, step_twice

METHODS = {
    **PROXY_METHODS,
    'shake_fc_only': dict(type='mmkd.SHAKE', depth='last_layer'),
    'sokd_last_stage': dict(type='mmkd.SOKD', last_stage=True),
    'pkd': dict(type='mmkd.PKD'),
}
IMPOSSIBLE = {('yolox', 'shake_fc_only'), ('yolox', 'sokd_last_stage'), ('rtmdet', 'sokd_last_stage')}
CELLS = [(family, method) for family in STOCK for method in METHODS if (family, method) not in IMPOSSIBLE]


def make(family: str, method: str):
    model = build(distill(detector(family), detector(family, 16), **{method: METHODS[method]}))
    # A random teacher is sure of nothing; this one has opinions.
    with torch.no_grad():
        for name, parameter in model.mmkd.teacher.model.named_parameters():
            if any(f'{last}.' in name for last in classifier_parts(family)[1::2]):
                parameter.mul_(20 if name.endswith('weight') else 0)
    return model


def inputs(family: str, model, seed: int = 0) -> dict:
    torch.manual_seed(seed)
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 100, 120]], num_classes=CLASSES, num_items=[2, 3],
                          with_mask=family == 'mask_rcnn')
    return model.data_preprocessor(data, True)


def part(family: str, name: str) -> str:
    """Tell which part of a distilled detector a parameter belongs to."""
    if name.startswith('mmkd.'):
        return 'proxy'
    if name.startswith(('backbone', 'neck')):
        return 'trunk'
    if name.startswith(('bbox_head', 'roi_head.bbox_head')) and any(
            f'.{layer}.' in name for layer in classifier_parts(family)):
        return 'classifier'
    return 'rest'


def reached(family: str, model, loss) -> set[str]:
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad),
                            strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {part(family, name) for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None and bool(gradient.any())}


def expected_parts(method: str, term: str) -> set[str]:
    if term == 'loss_feature':
        return {'trunk'}
    if term == 'loss_student':
        return {'trunk', 'classifier'}
    if method == 'shake':
        return {'trunk', 'proxy'}
    if method == 'shake_fc_only':
        return {'trunk', 'classifier', 'proxy'}
    return {'proxy'}


TERMS = {
    'kd': {'loss_student'}, 'pkd': {'loss_feature'},
    'kdtuned': {'loss_student', 'loss_proxy_student'},
    'dml': {'loss_student', 'loss_proxy_task', 'loss_proxy_student'},
    'shake': {'loss_student', 'loss_proxy_teacher', 'loss_proxy_student'},
    'shake_teacher': {'loss_student', 'loss_proxy_task', 'loss_proxy_teacher', 'loss_proxy_student'},
}
TERMS['kdtuned_head'] = TERMS['kdtuned_adapter'] = TERMS['kdtuned']
TERMS['shake_fc_only'] = TERMS['shake_alone'] = TERMS['shake']
TERMS['sokd'] = TERMS['sokd_last_stage'] = TERMS['shake_teacher']


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'method'), CELLS)
def test_cell(family, method):
    model = make(family, method)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        losses = model(**inputs(family, model, step), mode='loss')
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        if step == 0:
            terms = {name.split('.')[1] for name in log if name.startswith(f'{method}.loss')}
            assert terms == TERMS[method]
            for term in terms:
                loss = losses[f'{method}.{term}']
                if loss > 0 or term != 'loss_proxy_student':  # an adapter starts as the teacher
                    got = reached(family, model, loss)
                    assert got == expected_parts(method, term), (term, loss.item())
        optimizer.zero_grad()
        total.backward()
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert unused == []
        assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())
        optimizer.step()
    stock = MODELS.build(detector(family))
    stock.load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))


@pytest.mark.parametrize('family', STOCK)
def test_copied_heads_have_no_box_branches(family):
    model = make(family, 'shake')
    names = [name for name, _ in model.mmkd.methods['shake'].proxies[0].heads[0].named_parameters()]
    assert names
    assert all(any(f'{one}.' in name for one in classifier_parts(family)) for name in names), names


def worker(rank: int, family: str, folder: str) -> None:
    init_default_scope('mmdet')
    for method in METHODS:
        if (family, method) not in IMPOSSIBLE:
            step_twice(make(family, method), functools.partial(inputs, family), method, folder, rank)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize('family', STOCK)
def test_two_processes(family, tmp_path):
    run_in_two_processes(worker, family, str(tmp_path))
    done = {path.name for path in tmp_path.iterdir()}
    assert done == {f'{method}.{rank}' for method in METHODS for rank in range(2)
                    if (family, method) not in IMPOSSIBLE}


# Pairs


def pair(student: str, teacher: str, method: str = 'kd'):
    return build(distill(detector(student), detector(teacher, 16), **{method: METHODS[method]}))


@pytest.mark.parametrize(('student', 'teacher'), [
    ('atss', 'gfl'), ('fcos', 'gfl'), ('mask_rcnn', 'faster_rcnn'), ('cascade_rcnn', 'faster_rcnn')])
@pytest.mark.parametrize('method', ['kd', 'shake', 'sokd'])
def test_mixed_pairs(student, teacher, method):
    model = pair(student, teacher, method)
    losses = model(**inputs(student, model), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total) and log[f'{method}.loss_student'] > 0


@pytest.mark.parametrize(('student', 'teacher'), [
    ('faster_rcnn', 'retinanet'), ('retinanet', 'cascade_rcnn')])
def test_features_of_any_pair(student, teacher):
    model = pair(student, teacher, 'pkd')
    _, log = model.parse_losses(model(**inputs(student, model), mode='loss'))
    assert log['pkd.loss_feature'] > 0


@pytest.mark.parametrize(('student', 'teacher', 'why'), [
    ('faster_rcnn', 'retinanet', 'the student is a two-stage detector and the teacher a dense one'),
    ('fcos', 'faster_rcnn', 'the student is a dense detector and the teacher a two-stage one'),
    ('retinanet', 'fcos', r'\[9, 9, 9, 9, 9\] anchors per location in the student and \[1, 1, 1, 1, 1\]'),
    ('fcos', 'rtmdet', r'strides \[8, 16, 32, 64, 128\] in the student and \[8, 16, 32\]'),
    ('faster_rcnn', 'cascade_rcnn', 'the student has 1 cascade stages and the teacher 3'),
    ('yolox', 'rtmdet', 'scores of the student are class times objectness, the scores of the teacher class '
     'alone'),
])
@pytest.mark.parametrize('method', ['kd', 'shake', 'sokd'])
def test_pairs_that_cannot_be_compared_say_why(student, teacher, why, method):
    with pytest.raises(MMKDError, match=f'cannot be compared: .*{why}.*Distill features instead'):
        pair(student, teacher, method)


def test_scores_that_are_no_logits():
    from mmengine.hub import get_config
    tood = get_config('mmdet::tood/tood_r50_fpn_1x_coco.py').model
    tood.backbone.init_cfg = None
    message = "class scores of the student's TOODHead are not the output of a layer"
    with pytest.raises(MMKDError, match=message):
        build(distill(tood, copy.deepcopy(tood), kd=METHODS['kd']))


@pytest.mark.slow
@pytest.mark.parametrize('family', ['retinanet', 'yolox', 'cascade_rcnn'])
@pytest.mark.parametrize('method', ['kd', 'sokd', 'shake_teacher', 'kdtuned'])
def test_class_mapping_of_every_kind(family, method):
    """A teacher of five classes, of which the student knows three."""
    teacher = detector(family, 16)
    heads = teacher.roi_head.bbox_head if family in TWO_STAGE else [teacher.bbox_head]
    for head in heads:
        head.num_classes = 5
    cfg = distill(detector(family), teacher, **{method: METHODS[method]})
    with pytest.raises(MMKDError, match='has 5 classes and the student 3'):
        MODELS.build(copy.deepcopy(cfg))
    cfg['teacher']['class_mapping'] = [4, 0, 2]
    model = build(cfg)
    total, _ = model.parse_losses(model(**inputs(family, model), mode='loss'))
    total.backward()
    assert torch.isfinite(total)


@pytest.mark.slow
@pytest.mark.parametrize('family', ['faster_rcnn', 'retinanet'])
@pytest.mark.parametrize('weights', ['equal', 'adaptive'])
@pytest.mark.parametrize('method', ['KD', 'SHAKE', 'SOKD'])
def test_several_teachers(family, weights, method):
    cfg = distill(detector(family), detector(family, 16),
                 m=dict(type=f'mmkd.{method}', teacher_weights=weights))
    cfg['teacher'] = [cfg['teacher'], dict(config=detector(family, 24), checkpoint='random')]
    model = build(cfg)
    assert len(model.mmkd.methods['m'].proxies) == (0 if method == 'KD' else 2)
    total, log = model.parse_losses(model(**inputs(family, model), mode='loss'))
    total.backward()
    assert torch.isfinite(total) and log['m.loss_student'] > 0
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_equal_weights_are_the_mean_over_teachers():
    losses = []
    for sizes in ((16, ), (24, ), (16, 24)):
        cfg = distill(detector('retinanet'), {}, kd=METHODS['kd'])
        torch.manual_seed(0)
        cfg['teacher'] = []
        for size in sizes:
            path = teacher_file(size)
            cfg['teacher'].append(dict(config=detector('retinanet', size), checkpoint=path))
        model = build(cfg)
        model.mmkd.methods['kd'].sample_weight = 'uniform'
        losses.append(model(**inputs('retinanet', model), mode='loss')['kd.loss_student'])
    one, other, both = losses
    torch.testing.assert_close(both, (one + other) / 2)


@pytest.fixture(autouse=True, scope='module')
def _folder(tmp_path_factory):
    teacher_file.folder = tmp_path_factory.mktemp('teachers')


def teacher_file(size: int) -> str:
    """Write a checkpoint of a random RetinaNet, and return its path."""
    path = teacher_file.folder / f'{size}.pth'
    if not path.exists():
        torch.manual_seed(size)
        torch.save(dict(state_dict=MODELS.build(detector('retinanet', size)).state_dict()), path)
    return str(path)


def test_dml_and_shake_without_teacher_need_no_teacher():
    for method in (dict(type='mmkd.DML'), dict(type='mmkd.SHAKE', teacher_to_proxy=0.0)):
        model = build(dict(type='mmkd.DetectorDistiller', student=detector('retinanet'),
                           methods=dict(m=method)))
        total, log = model.parse_losses(model(**inputs('retinanet', model), mode='loss'))
        total.backward()
        assert log['m.loss_student'] > 0
    with pytest.raises(MMKDError, match='learns from a teacher'):
        build(dict(type='mmkd.DetectorDistiller', student=detector('retinanet'),
                   methods=dict(kd=METHODS['kd'])))


def test_a_peer_does_not_shift_the_students_random_numbers():
    """Student alone and beside a peer: the same sampled boxes, so the same own losses."""
    results = []
    for method in ('kd', 'dml', 'shake_alone'):
        model = make('faster_rcnn', method)
        if method == 'shake_alone':
            head = model.mmkd.methods[method].proxies[0].network.roi_head.bbox_head
            head.register_forward_pre_hook(lambda *_: torch.rand(1) and None)  # as dropout does
        data = inputs('faster_rcnn', model)
        torch.manual_seed(3)
        losses = model(**data, mode='loss')
        results.append((losses['loss_cls'], torch.rand(2)))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize('method', ['sokd', 'kdtuned', 'kdtuned_head'])
def test_weights_from_the_teacher_survive_initialization(method):
    settings = dict(METHODS[method], **(dict(init='teacher') if method == 'sokd' else {}))
    model = build(distill(detector('retinanet'), detector('retinanet', 16), m=settings))
    theirs = model.mmkd.teacher.model.state_dict()
    proxy = model.mmkd.methods['m'].proxies[0]
    mine = proxy.network if method == 'kdtuned' else proxy.heads[0]
    prefix = '' if method == 'kdtuned' else 'bbox_head.'
    assert mine.state_dict()
    for name, value in mine.state_dict().items():
        assert torch.equal(value, theirs[prefix + name]), name
