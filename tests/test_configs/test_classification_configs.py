"""Every shipped classifier config builds and takes a step, and every pair works with every method."""
import copy
import functools
from importlib.util import find_spec
from pathlib import Path

import mmengine.config.utils
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from mmkd.apis import compose_distillation, is_distillation, prepare_config, student_config
from mmkd.apis.config import trains_classifier
from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.methods import PhasedMethod, TrainLabelsMethod
from mmkd.models.methods.mixins import in_first_phase
from tests.helpers.crd import FACTS
from tests.helpers.shipped import CLASSIFIER_CONFIGS as CONFIGS
from tests.helpers.tiny import REPO

pytest.importorskip('mmpretrain')

PAIRS = [path for path in CONFIGS if path.parent == Path('configs/cifar')]
NOT_PAIRS = [path for path in CONFIGS if path not in PAIRS]
METHODS = {
    'student': {}, 'kd': {}, 'kdtuned': {}, 'dml': {}, 'sokd': {}, 'shake': {},
    'shake_released': dict(placement='teacher', standardize_task=True),
}
ALL_STEP = ('resnet32x4_resnet8x4', 'wrn_40_2_shufflev1')
"""Pairs that take a step with every method; every other pair takes a step with one method."""


@pytest.fixture(autouse=True, scope='module')
def metafiles_read_once():
    """Read each metafile once: MMEngine reads all of MMPretrain's for every base config from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.utils, 'load', functools.cache(mmengine.config.utils.load))
        yield


@pytest.fixture(autouse=True)
def _scope(_fresh_process):
    init_default_scope('mmpretrain')


@functools.cache
def read(path: Path) -> Config:
    return Config.fromfile(REPO / path)


def composed(path: Path, method: str) -> Config:
    """Return the config that ``tools/train.py PAIR --distill METHOD`` composes, with a random teacher."""
    cfg = copy.deepcopy(read(path))
    if method != 'student':
        name = method.partition('_')[0]
        compose_distillation(cfg, name, teacher_checkpoint='random')
        cfg.merge_from_dict({f'model.methods.{name}.{key}': value for key, value in METHODS[method].items()})
    return prepare_config(cfg)


def built(cfg: Config):
    """Build a model as MMEngine's Runner does; :func:`step` initializes its weights."""
    model = MODELS.build(copy.deepcopy(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)))
    return revert_sync_batchnorm(model)


def step(model, cfg: Config, size: int, classes: int) -> dict:
    """Initialize a model, take a training step on a batch of two, and return the logged losses."""
    from mmpretrain.structures import DataSample
    torch.manual_seed(0)
    model.init_weights()
    methods = list(model.mmkd.methods.values()) if is_distillation(cfg) else []
    for method in methods:
        # Hooks do this before an epoch.
        if isinstance(method, PhasedMethod):
            method.in_first_phase = method.first_phase_epochs > 0
        if isinstance(method, TrainLabelsMethod) and method.needs_train_labels:
            method.set_train_labels(range(classes))
    before = copy.deepcopy(model.head.state_dict())
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8) for _ in range(2)]
    samples = [DataSample(metainfo=dict(sample_idx=label)).set_gt_label(label) for label in (0, classes - 1)]
    losses = model.train_step(
        dict(inputs=images, data_samples=samples), build_optim_wrapper(model, cfg.optim_wrapper))
    assert all(torch.isfinite(value) for value in losses.values()), losses
    if not any(in_first_phase(method) for method in methods):
        assert not any(torch.equal(before[name], value) for name, value in model.head.state_dict().items())
    for method in cfg.model.methods if is_distillation(cfg) else ():
        assert any(name.startswith(f'{method}.loss') and value > 0 for name, value in losses.items()), losses
    return losses


def check_checkpoint(model, cfg: Config) -> None:
    """Check that the saved config is without distillation and that the saved weights fit it."""
    stock_cfg = student_config(cfg)
    assert 'teacher' not in stock_cfg
    if stock_cfg.model.backbone.type.startswith('mmkd.'):
        assert stock_cfg.custom_imports['imports'] == ['mmkd']
    else:
        assert 'mmkd' not in stock_cfg.pretty_text
    stock = MODELS.build(stock_cfg.model)
    assert type(stock).__module__.startswith('mmpretrain.')
    stock.load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))


def number_of_parameters(model) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters()
               if not name.startswith('mmkd.'))


def known_parameters(network: str, classes: int) -> int:
    """Return how many parameters a network of the benchmark has with a number of classes."""
    (facts, ) = (facts for name, facts in FACTS.items() if name.lower() == network)
    *_, weight, bias = facts['state_dict'].values()
    assert bias == [100]
    return facts['params'] - (100 - classes) * (weight[1] + 1)


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('path', PAIRS, ids=lambda path: path.stem)
def test_pair(path, method):
    cfg = composed(path, method)
    model = built(cfg)
    classes = 10 if path.stem.endswith('_cifar10') else 100
    teacher = Path(read(path).teacher.config).stem.removesuffix('_cifar10')
    student = path.stem.removeprefix(f'{teacher}_').removesuffix('_cifar10')
    assert number_of_parameters(model) == known_parameters(student, classes)
    if method == 'dml':
        assert not model.mmkd.teachers
        assert number_of_parameters(model.mmkd.methods.dml.proxies[0]) == known_parameters(teacher, classes)
    elif method != 'student':
        assert number_of_parameters(model.mmkd.teacher.model) == known_parameters(teacher, classes)
        assert model.mmkd.teacher.model.data_preprocessor.mean.flatten().tolist() == pytest.approx(
            cfg.data_preprocessor.mean)
    distilling = [name for name in METHODS if name != 'student']
    if path.stem in ALL_STEP or method == distilling[PAIRS.index(path) % len(distilling)]:
        step(model, cfg, 32, classes)
        check_checkpoint(model, cfg)


SAKD_PAIRS = (
    'resnet56_resnet20', 'resnet110_resnet32', 'resnet32x4_resnet8x4', 'resnet32x4_resnet32',
    'wrn_40_2_wrn_16_2', 'vgg13_vgg8', 'vgg13_mobilenetv2', 'resnet50_vgg8', 'resnet50_mobilenetv2',
    'wrn_40_2_shufflev1')


SAKD_METHODS = ('FitNet', 'AT', 'SP', 'CC', 'VID', 'RKD', 'PKT', 'FT', 'FSP', 'NST', 'CRD')


@pytest.mark.slow
@pytest.mark.parametrize('method', SAKD_METHODS)
@pytest.mark.parametrize('pair', SAKD_PAIRS)
def test_sakd_with_every_pair_and_distiller_of_its_paper(pair, method):
    cfg = copy.deepcopy(read(Path(f'configs/cifar/{pair}.py')))
    compose_distillation(cfg, 'sakd', teacher_checkpoint='random')
    cfg.model.methods.sakd.update(method=method, **(dict(negatives=8) if method == 'CRD' else {}))
    cfg = prepare_config(cfg)
    model = built(cfg)
    if (SAKD_PAIRS.index(pair) + SAKD_METHODS.index(method)) % 4:
        return  # a step for every fourth, so that each pair and each method takes some
    losses = step(model, cfg, 32, 100)
    if method != 'FT':  # in its first phase, FT has no other losses
        assert {'sakd.loss_feature', 'sakd.loss_routing', 'sakd.loss_kd'} <= set(losses)


@pytest.mark.slow
@pytest.mark.parametrize('path', NOT_PAIRS, ids=lambda path: path.stem)
def test_config(path):
    cfg = prepare_config(copy.deepcopy(read(path)))
    timm = 'TimmClassifier' in repr(cfg.model)
    if timm and not find_spec('timm'):
        pytest.skip('needs timm')
    if is_distillation(cfg) and 'teacher' in cfg.model:
        cfg.model.teacher.checkpoint = 'random'
    model = built(cfg)
    step(model, cfg, *inputs(cfg))
    check_checkpoint(model, cfg)


def inputs(cfg: Config) -> tuple[int, int]:
    """Return the size of small images that a network can take, and the number of classes."""
    dataset = cfg.train_dataloader.dataset
    root = dataset.get('dataset', dataset).data_root  # a ResidentDataset wraps another dataset
    if 'cifar' in root or 'digits' in root:
        return 32, cfg.data_preprocessor.num_classes
    return 224 if 'deit' in repr(cfg.model) else 64, 1000


@pytest.mark.parametrize('name', ['deit', 'shake_deit'])
def test_the_transformers_configs_with_a_teacher_that_needs_no_timm(name):
    path = Path(f'configs/classification/deit/{name}_regnety160_deit-tiny_imagenet.py')
    cfg = prepare_config(copy.deepcopy(read(path)))
    assert cfg.model.teacher.config.model.model_name == 'regnety_160'
    cfg.model.teacher.update(config='mmpretrain::resnet/resnet18_8xb32_in1k.py', checkpoint='random')
    model = built(cfg)
    losses = step(model, cfg, *inputs(cfg))
    assert losses['loss_class' if 'loss_class' in losses else 'deit.loss_class'] > 0
    check_checkpoint(model, cfg)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_they_are_known_as_classifiers(path):
    assert trains_classifier(read(path))


def test_the_pairs_of_the_papers_are_among_them():
    assert {path.stem for path in PAIRS} >= {
        'wrn_40_2_wrn_16_2', 'wrn_40_2_wrn_40_1', 'resnet32x4_resnet8x4', 'vgg13_vgg8',
        'resnet50_mobilenetv2', 'resnet32x4_shufflev1', 'resnet32x4_shufflev2', 'resnet56_resnet20',
        'resnet110_resnet32', 'resnet32x4_resnet32', 'vgg13_mobilenetv2', 'resnet50_vgg8',
        'wrn_40_2_shufflev1',
        'wrn_40_2_wrn_16_2_cifar10', 'resnet32x4_resnet8x4_cifar10'}


def test_the_settings_of_the_papers():
    for path in PAIRS:
        cfg = read(path)
        slow = any(name in path.stem for name in ('_mobilenetv2', '_shufflev'))
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
            'SGD', 0.01 if slow else 0.05, 0.9, 5e-4)
        assert (cfg.param_scheduler.milestones, cfg.param_scheduler.gamma) == ([150, 180, 210], 0.1)
        assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (240, 64)
        crop = next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
        assert (crop.crop_size, crop.padding, crop.get('padding_mode', 'constant')) == (32, 4, 'constant')
    sokd = read(Path('configs/classification/sokd/sokd_wrn_40_2_wrn_16_2_cifar100_200e.py'))
    assert (sokd.optim_wrapper.optimizer.lr, sokd.param_scheduler.milestones) == (0.1, [100, 150])
    assert (sokd.train_cfg.max_epochs, sokd.train_dataloader.batch_size) == (200, 128)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode='reflect')
    crops = [padded[y:y + 32, x:x + 32] for y in range(9) for x in range(9)]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        view = Compose(sokd.train_dataloader.dataset.pipeline)(dict(img=image, gt_label=0))['inputs']
    view = view.permute(1, 2, 0).numpy()
    assert any(np.array_equal(view, crop) or np.array_equal(view, crop[:, ::-1]) for crop in crops)


@pytest.mark.parametrize('method', ['sokd', 'shake'])
def test_mixed_images_by_the_options_in_the_docs(method):
    cfg = composed(Path('configs/cifar/resnet32x4_resnet8x4.py'), method)
    cfg.merge_from_dict({'model.student.train_cfg.augments.type': 'CutMix',
                         'model.student.train_cfg.augments.alpha': 1.0,
                         'model.student.head.loss.use_soft': True})
    model = built(cfg)
    assert model.data_preprocessor.batch_augments is not None
    step(model, cfg, 32, 100)
    check_checkpoint(model, cfg)


# Configs that name their teacher


def test_a_named_teacher_is_taken_unless_another_is_given():
    pair = Path('configs/cifar/resnet32x4_resnet8x4.py')
    cfg = compose_distillation(copy.deepcopy(read(pair)), 'kd')
    assert cfg.model.teacher == dict(
        config='mmkd::cifar/networks/resnet32x4.py', checkpoint='checkpoints/crd/resnet32x4.pth')
    assert 'teacher' not in cfg
    cfg = compose_distillation(copy.deepcopy(read(pair)), 'kd', teacher_checkpoint='teacher.pth')
    assert cfg.model.teacher == dict(config='mmkd::cifar/networks/resnet32x4.py', checkpoint='teacher.pth')
    # The named checkpoint belongs to the named teacher, not to another one.
    cfg = compose_distillation(copy.deepcopy(read(pair)), 'kd', 'configs/cifar/networks/vgg13.py')
    assert cfg.model.teacher == dict(config='configs/cifar/networks/vgg13.py', checkpoint=None)
    with pytest.raises(MMKDError, match='The teacher has no checkpoint'):
        built(cfg)


def test_a_peer_is_built_like_the_named_teacher():
    cfg = compose_distillation(copy.deepcopy(read(Path('configs/cifar/resnet32x4_resnet8x4.py'))), 'DML')
    assert cfg.model.methods.dml == dict(type='mmkd.DML', config='mmkd::cifar/networks/resnet32x4.py')
    assert 'teacher' not in cfg.model and 'teacher' not in cfg
    cfg = compose_distillation(
        copy.deepcopy(read(Path('configs/cifar/resnet32x4_resnet8x4.py'))), ['dml', 'kd'])
    assert cfg.model.methods.dml.config == cfg.model.teacher.config == 'mmkd::cifar/networks/resnet32x4.py'
    cfg = compose_distillation(copy.deepcopy(read(Path('configs/cifar/resnet32x4_resnet8x4.py'))), 'dml',
                               'configs/cifar/networks/vgg13.py', 'vgg13.pth')
    assert cfg.model.methods.dml.config == cfg.model.teacher.config == 'configs/cifar/networks/vgg13.py'


def test_a_student_alone_leaves_no_teacher_in_its_checkpoints():
    cfg = prepare_config(copy.deepcopy(read(Path('configs/cifar/vgg13_vgg8.py'))))
    assert 'teacher' in cfg and 'teacher' not in student_config(cfg)
