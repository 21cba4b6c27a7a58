"""Every query-based family with every way of who teaches: steps, gradients, processes, checkpoints."""
import copy
import functools

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.spots import logit_layout, queries_of
from tests.helpers.comparing import differences
from tests.helpers.families import PROXY_METHODS, detector
from tests.helpers.queries import STOCK, query_batch, query_detector
from tests.helpers.tiny import build, distill
from tests.helpers.two_processes import run_in_two_processes, step_twice

METHODS = {**PROXY_METHODS, 'boxes': dict(type='mmkd.QueryBoxes')}
METHODS.update({f'{name}_shared': dict(METHODS[name], query_match='shared')
                for name in ('kd', 'kdtuned', 'shake', 'shake_alone', 'sokd', 'boxes')})
NO_BOXES = ('detr', 'conditional')
# Every method in one family, and in the others what their code makes different.
OF_FAMILIES = dict(
    detr=('kd', 'shake', 'dml'), conditional=('shake', 'boxes'), dab=('kd_shared', 'sokd'),
    deformable=('kd_shared', 'shake_teacher'), refine=('kdtuned_shared', 'boxes_shared'),
    two_stage=('kd_shared', ), dino=tuple(METHODS), ddq=('kd', 'shake', 'kdtuned_shared'))
CELLS = [(family, method) for family, methods in OF_FAMILIES.items() for method in methods]


def opinionated(model, seed: int = 5):
    """Let a detector be sure of some classes, other ones for every query, and of boxes that move."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.bbox_head.named_parameters():
            if 'cls' in name:
                scale = 3 * parameter.shape[-1]**-0.5 if name.endswith('weight') else 0
                parameter.copy_(torch.randn_like(parameter) * scale)
            elif name.endswith('weight'):
                parameter.add_(torch.randn_like(parameter) * parameter.shape[-1]**-0.5)


def make(family: str, *methods: str, teacher: str | None = None, **settings):
    cfgs = {method: METHODS[method] for method in methods}
    model = build(distill(query_detector(family), query_detector(teacher or family, 16, **settings), **cfgs))
    opinionated(model.mmkd.teacher.model)
    opinionated(model, 6)
    return model


def reached(model, loss) -> set[str]:
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad),
                            strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    found = set()
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None and bool(gradient.any()):
            part = name.split('.')[0] if not name.startswith('bbox_head') else name.split('.')[1][:3]
            found.add(part if part in ('mmkd', 'backbone', 'decoder', 'cls', 'reg', 'fc_') else 'rest')
    return found


TERMS = {
    'kd': {'loss_student'}, 'boxes': {'loss_l1', 'loss_giou'},
    'kdtuned': {'loss_student', 'loss_proxy_student'},
    'dml': {'loss_student', 'loss_proxy_task', 'loss_proxy_student'},
    'shake': {'loss_student', 'loss_proxy_teacher', 'loss_proxy_student'},
    'sokd': {'loss_student', 'loss_proxy_task', 'loss_proxy_teacher', 'loss_proxy_student'},
}
TERMS['kdtuned_head'] = TERMS['kdtuned_adapter'] = TERMS['kdtuned']
TERMS['shake_alone'], TERMS['shake_teacher'] = TERMS['shake'], TERMS['sokd']


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'method'), CELLS)
def test_cell(family, method):
    model = make(family, method)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    name = method.removesuffix('_shared')
    for step in range(2):
        losses = model(**query_batch(model, step), mode='loss')
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        if step == 0:
            terms = {key.split('.')[1] for key in log if key.startswith(f'{method}.loss')}
            assert terms == TERMS[name]
            for term in terms:
                loss = losses[f'{method}.{term}']
                assert loss > 0 or (name, term) == ('kdtuned_adapter', 'loss_proxy_student')
                parts = reached(model, loss)
                if term.startswith('loss_proxy'):
                    assert 'mmkd' in parts and (parts == {'mmkd'} or name == 'shake'), (term, parts)
                else:
                    assert parts >= {'backbone', 'decoder'} and 'mmkd' not in parts, (term, parts)
                    assert ('cls' in parts or 'fc_' in parts) == (term == 'loss_student') or family in (
                        'detr', 'conditional', 'dab'), (term, parts)
        optimizer.zero_grad()
        total.backward()
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert unused == []
        assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())
        optimizer.step()
    weights = student_state_dict(dict(state_dict=model.state_dict()))
    stock = MODELS.build(query_detector(family))
    if family == 'ddq':  # from its first step on, a DDQ has these weights under a second name
        weights = {name: value for name, value in weights.items() if 'decoder.aux_' not in name}
    stock.load_state_dict(weights)


IN_TWO_PROCESSES = [
    ('dino', 'kd_shared'), ('dino', 'kdtuned'), ('dino', 'dml'), ('dino', 'shake_teacher'), ('dino', 'sokd'),
    ('ddq', 'kdtuned_shared'), ('detr', 'shake')]


def worker(rank: int, folder: str) -> None:
    init_default_scope('mmdet')
    for family, method in IN_TWO_PROCESSES:
        step_twice(make(family, method, layers=1), query_batch, f'{family}-{method}', folder, rank)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tmp_path):
    """The teacher has fewer layers than the student, whose first layer no proxy learns from."""
    run_in_two_processes(worker, str(tmp_path))
    done = {path.name for path in tmp_path.iterdir()}
    assert done == {f'{family}-{method}.{rank}' for family, method in IN_TWO_PROCESSES for rank in range(2)}


@pytest.mark.parametrize('family', STOCK)
def test_the_students_losses_are_those_without_distillation(family):
    """To the last bit, with the same denoising noise and dropout, in two forward passes."""
    methods = ['kd', 'dml'] if family in NO_BOXES else ['kd_shared', 'dml']
    distilled, alone = make(family, *methods), build(query_detector(family))
    alone.load_state_dict(student_state_dict(dict(state_dict=distilled.state_dict())))
    alone.train()
    batch = query_batch(distilled)
    torch.manual_seed(0)
    losses = [distilled.loss(*copy.deepcopy(batch).values()) for _ in range(2)]
    torch.manual_seed(0)
    expected = [alone.loss(*copy.deepcopy(batch).values()) for _ in range(2)]
    for got, stock in zip(losses, expected, strict=True):
        assert stock.keys() <= got.keys()
        assert differences({name: got[name] for name in stock}, stock) == []


# In training, DDQ discards other queries than in inference.
@pytest.mark.parametrize('family', [family for family in STOCK if family != 'ddq'])
def test_an_identical_teacher_has_nothing_to_teach(family):
    matches = ['kd', 'boxes'] if family in NO_BOXES else ['kd', 'kd_shared', 'boxes', 'boxes_shared']
    model = build(distill(query_detector(family), query_detector(family),
                          **{method: METHODS[method] for method in matches}))
    opinionated(model)
    model.mmkd.teacher.model.load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))
    model.eval()  # the same batch statistics, and no dropout
    model.training = True  # the loss needs the encoder's proposals and denoising queries
    batch = query_batch(model)
    losses = model.loss(**batch)
    for name in matches:
        for term in TERMS[name.removesuffix('_shared')]:
            assert abs(losses[f'{name}.{term}'].item()) < 1e-4, (name, term, losses[f'{name}.{term}'])
    opinionated_differently = model.mmkd.teacher.model
    with torch.no_grad():
        for parameter in opinionated_differently.bbox_head.parameters():
            parameter.mul_(1.5)
    losses = model.loss(**batch)
    assert all(losses[f'{name}.{term}'].item() > 1e-3 for name in matches
               for term in TERMS[name.removesuffix('_shared')])


@pytest.mark.parametrize('family', STOCK)
def test_the_teacher_sees_what_the_stock_teacher_sees(family):
    """On images of different sizes, normalized and padded as in the teacher's own preprocessing."""
    student = query_detector(family)
    student.data_preprocessor.update(mean=[100, 110, 120], std=[50, 60, 70], bgr_to_rgb=False,
                                     pad_size_divisor=32)
    model = build(distill(student, query_detector(family, 16), kd=METHODS['kd']))
    teacher = model.mmkd.teacher
    opinionated(teacher.model)
    torch.manual_seed(0)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((70, 90), (50, 60))]
    samples = query_batch(model)['data_samples']
    for sample, image in zip(samples, images, strict=True):
        sample.set_metainfo(dict(img_shape=tuple(image.shape[-2:])))
    own = model.data_preprocessor(dict(inputs=images, data_samples=copy.deepcopy(samples)), False)
    outputs = teacher(own['inputs'], own['data_samples'])['cls_outputs']
    stock = teacher.model.data_preprocessor(dict(inputs=images, data_samples=samples), False)
    assert stock['inputs'].shape != own['inputs'].shape
    with torch.no_grad():
        expected = teacher.model._forward(stock['inputs'], stock['data_samples'])
    queries = queries_of(outputs)
    number = len(expected[0])
    torch.testing.assert_close(queries.logits[-number:], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(queries.boxes[-number:], expected[1], rtol=1e-4, atol=1e-4)


# Pairs


@pytest.mark.parametrize(('student', 'teacher', 'method'), [
    ('deformable', 'dino', 'kd'), ('dino', 'ddq', 'kd_shared'), ('ddq', 'dino', 'kdtuned'),
    ('conditional', 'dab', 'shake'), ('dino', 'conditional', 'boxes'), ('dino', 'two_stage', 'kd_shared')])
def test_families_can_be_paired(student, teacher, method):
    model = make(student, method, teacher=teacher, queries=9, layers=3)
    losses = model(**query_batch(model), mode='loss')
    total, log = model.parse_losses(losses)
    assert all(torch.isfinite(value) for value in log.values())
    total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(losses[f'{method}.{term}'] > 0 for term in TERMS[method.removesuffix('_shared')])


@pytest.mark.parametrize('query_match', ['hungarian', 'shared'])
def test_several_teachers(query_match):
    cfg = distill(query_detector('dino'), query_detector('dino', 16), kd=dict(
        type='mmkd.KD', query_match=query_match, teacher_weights='adaptive'))
    second = dict(config=query_detector('dino', 16, queries=9, layers=1), checkpoint='random')
    cfg['teacher'] = [cfg['teacher'], second]
    model = build(cfg)
    for teacher in model.mmkd.teachers:
        opinionated(teacher.model)
    total, log = model.parse_losses(model(**query_batch(model), mode='loss'))
    assert log['kd.loss_student'] > 0 and torch.isfinite(total)
    total.backward()


@pytest.mark.parametrize(('student', 'teacher', 'message'), [
    ('detr', 'dino', 'classifies with a softmax and the teacher with a sigmoid'),
    ('dino', 'retinanet', 'student is a query-based detector and the teacher a dense one'),
    ('faster_rcnn', 'dino', 'student is a two-stage detector and the teacher a query-based one')])
def test_logits_that_cannot_be_compared(student, teacher, message):
    cfgs = [query_detector(family) if family in STOCK else detector(family) for family in (student, teacher)]
    with pytest.raises(MMKDError, match=message):
        build(distill(*cfgs, kd=METHODS['kd']))


@pytest.mark.parametrize(('cfg', 'message'), [
    (dict(type='mmkd.DKD'), 'student DistilledDINO classifies queries. Use KD'),
    (dict(type='mmkd.SOKD', last_stage=True), 'last_stage=False'),
    (dict(type='mmkd.SHAKE', head=dict(num_reg_fcs=3)), 'no `settings`')])
def test_methods_that_are_not_for_queries(cfg, message):
    with pytest.raises(MMKDError, match=message):
        build(distill(query_detector('dino'), query_detector('dino', 16), method=cfg))


@pytest.mark.parametrize(('config', 'message'), [
    ('grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py', 'words of a text.*neck'),
    ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', 'boxes that its own queries have refined'),
    ('queryinst/queryinst_r50_fpn_1x_coco.py', 'boxes that its own queries have refined')])
def test_detectors_whose_logits_cannot_be_distilled(config, message):
    cfg = get_config(f'mmdet::{config}').model
    kind = MMDET_MODELS.get(cfg.type)
    model = object.__new__(kind)  # its weights and its language model are not needed
    torch.nn.Module.__init__(model)
    if 'roi_head' in cfg:
        model.roi_head = MMDET_MODELS.build({**cfg.roi_head, 'train_cfg': None, 'test_cfg': None})
    with pytest.raises(MMKDError, match=message):
        logit_layout(model, 'student')


def test_boxes_are_compared_as_the_equation_says():
    model = make('refine', 'boxes')
    step_losses = model(**query_batch(model), mode='loss')
    method = model.mmkd.methods['boxes']
    assert method.layout.stage_loss_weights == (1.0, 1.0)
    doubled = functools.partial(dict, type='mmkd.QueryBoxes')
    other = build(distill(query_detector('refine'), query_detector('refine', 16),
                          boxes=doubled(l1_weight=10.0, giou_weight=0.0)))
    opinionated(other.mmkd.teacher.model)
    other.load_state_dict(model.state_dict())
    losses = other(**query_batch(other), mode='loss')
    assert 'boxes.loss_giou' not in losses
    assert losses['boxes.loss_l1'].item() == pytest.approx(2 * step_losses['boxes.loss_l1'].item(), rel=0.2)
