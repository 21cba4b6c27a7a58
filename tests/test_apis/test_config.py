"""A training config becomes a distilling one, is prepared, and gives the stock student's back."""
import copy

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import EpochBasedTrainLoop

from mmkd.apis import compose_distillation, is_distillation, prepare_config, student_config
from mmkd.apis.config import check_annotation_files
from mmkd.errors import MMKDError
from tests.helpers.tiny import REPO, distill, tiny_config

STOCK = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'
PURE_PYTHON = """
from mmdet.models.backbones import ResNet
from mmdet.models.detectors import FasterRCNN
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from torch.optim import SGD

model = {model}
model.update(type=FasterRCNN)
model['backbone'].update(type=ResNet)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=2))
train_dataloader = dict(batch_size=2, num_workers=2, persistent_workers=True)
"""


def plain(value):
    """The content of a config without its classes; tuples and lists are the same to it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def stock() -> Config:
    return get_config(STOCK)


def composed(method: str = 'shake') -> Config:
    return compose_distillation(stock(), method, STOCK, 'random')


# Preparing


def test_preparing_a_distilling_config():
    cfg = composed()
    assert prepare_config(cfg) is cfg
    assert cfg.custom_imports['imports'] == ['mmkd']
    assert cfg.default_hooks.checkpoint.type == 'mmkd.CheckpointHook'
    assert cfg.default_hooks.exact_resume.type == 'mmkd.ExactResumeHook'
    assert cfg.default_hooks.finite_check.type == 'mmkd.FiniteCheckHook'
    assert cfg.default_hooks.teacher_check.type == 'mmkd.TeacherCheckHook'
    assert cfg.optim_wrapper.constructor == 'mmkd.DistillOptimWrapperConstructor'
    assert cfg.train_cfg.type == 'mmkd.EpochBasedTrainLoop'
    assert cfg.train_dataloader == stock().train_dataloader


def test_preparing_a_student_alone_changes_only_what_makes_runs_comparable():
    cfg = prepare_config(stock())
    assert cfg.default_hooks.checkpoint.type == 'mmkd.CheckpointHook'
    assert cfg.default_hooks.exact_resume.type == 'mmkd.ExactResumeHook'
    assert cfg.default_hooks.finite_check.type == 'mmkd.FiniteCheckHook'
    assert 'teacher_check' not in cfg.default_hooks
    assert plain(cfg.optim_wrapper) == plain(stock().optim_wrapper)
    assert plain(cfg.model) == plain(stock().model)


def test_preparing_twice_is_preparing_once():
    once = prepare_config(composed())
    once.optim_wrapper.extra = dict(lr=0.1)
    twice = prepare_config(copy.deepcopy(once))
    assert plain(twice.to_dict()) == plain(once.to_dict())


def test_settings_of_the_user_stay():
    cfg = composed()
    cfg.default_hooks.checkpoint.update(interval=3, max_keep_ckpts=2, save_best='auto')
    cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', evaluate=False)
    cfg.custom_imports = dict(imports='my.models', allow_failed_imports=True)
    cfg.train_dataloader.worker_init_fn = dict(type='my_seeds')
    cfg.model_wrapper_cfg = dict(type='MyWrapper')
    prepare_config(cfg, distributed=True)
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.interval, checkpoint.max_keep_ckpts, checkpoint.save_best) == (3, 2, 'auto')
    assert cfg.default_hooks.teacher_check.evaluate is False
    assert cfg.custom_imports['imports'] == ['my.models', 'mmkd']
    assert cfg.custom_imports['allow_failed_imports'] is True
    assert cfg.train_dataloader.worker_init_fn.type == 'my_seeds'
    assert cfg.model_wrapper_cfg.type == 'MyWrapper'


@pytest.mark.parametrize('hook', [None, dict(type='MyCheckpointHook')])
def test_another_checkpoint_hook_or_none_stays(hook):
    cfg = composed()
    cfg.default_hooks.checkpoint = hook
    prepare_config(cfg)
    assert plain(cfg.default_hooks.checkpoint) == hook
    assert plain(student_config(cfg).default_hooks.checkpoint) == hook


def test_hook_that_is_given_as_a_class():
    cfg = composed()
    cfg.default_hooks.checkpoint.type = CheckpointHook
    assert prepare_config(cfg).default_hooks.checkpoint.type == 'mmkd.CheckpointHook'


def test_workers_that_cache_images_do_not_persist():
    cfg = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    assert cfg.train_dataloader.persistent_workers
    assert prepare_config(cfg).train_dataloader.persistent_workers is False


@pytest.mark.parametrize(('loop', 'kind'), [
    (dict(by_epoch=True, max_epochs=2), 'EpochBasedTrainLoop'),
    (dict(by_epoch=False, max_iters=2), 'IterBasedTrainLoop'),
    (dict(type='IterBasedTrainLoop', max_iters=2), 'IterBasedTrainLoop'),
    (dict(type=EpochBasedTrainLoop, max_epochs=2), 'EpochBasedTrainLoop')])
def test_loops_that_resume(loop, kind):
    cfg = stock()
    cfg.train_cfg = loop
    assert prepare_config(cfg).train_cfg.type == f'mmkd.{kind}'
    assert 'by_epoch' not in cfg.train_cfg
    assert student_config(cfg).train_cfg.type == kind


def test_a_training_loop_of_the_users_is_kept():
    cfg = stock()
    cfg.train_cfg.type = 'MyLoop'
    assert prepare_config(cfg).train_cfg.type == 'MyLoop'


def test_load_from_becomes_safe_once():
    cfg = composed()
    cfg.load_from = 'epoch_12.pth'
    prepare_config(prepare_config(cfg))
    assert cfg.load_from == 'mmkd-safe:epoch_12.pth'
    assert student_config(cfg).load_from == 'epoch_12.pth'


@pytest.mark.parametrize(('distributed', 'gpu'), [(True, False), (True, True), (False, False)])
def test_wrapper_for_distributed_training_on_cpu(monkeypatch, distributed, gpu):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    cfg = prepare_config(composed(), distributed=distributed)
    if distributed and not gpu:
        assert cfg.model_wrapper_cfg == dict(type='MMDistributedDataParallel', device_ids=None)
    else:
        assert 'model_wrapper_cfg' not in cfg


# The user's rules for the student's parameters


def test_constructor_and_rules_of_the_user_stay():
    cfg = composed()
    rules = dict(norm_decay_mult=0.0, custom_keys=dict(backbone=dict(lr_mult=0.1)))
    cfg.optim_wrapper.update(constructor='LayerDecayOptimizerConstructor', paramwise_cfg=rules)
    prepare_config(cfg)
    assert cfg.optim_wrapper.constructor == 'mmkd.DistillOptimWrapperConstructor'
    assert cfg.optim_wrapper.student_constructor == 'LayerDecayOptimizerConstructor'
    assert plain(cfg.optim_wrapper.paramwise_cfg) == rules
    back = student_config(cfg).optim_wrapper
    assert back.constructor == 'LayerDecayOptimizerConstructor'
    assert plain(back.paramwise_cfg) == rules
    assert 'student_constructor' not in back


def test_rules_of_the_user_hold_for_the_students_parameters():
    student = tiny_config()
    student.optim_wrapper.optimizer.lr = 1e-3
    student.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
    cfg = compose_distillation(student, 'shake', dict(model=tiny_config('teacher').model), 'random')
    prepare_config(cfg)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {parameter: group['lr'] for group in wrapper.optimizer.param_groups
             for parameter in group['params']}
    rates = {name: rates[parameter] for name, parameter in model.named_parameters()}
    assert {rate for name, rate in rates.items() if name.startswith('backbone.')} == {1e-4}
    assert {rate for name, rate in rates.items() if not name.startswith('backbone.')} == {1e-3}
    assert any(name.startswith('mmkd.') for name in rates)


# The student's config inside


PARTS = ('model', 'optim_wrapper', 'default_hooks', 'custom_hooks', 'param_scheduler', 'train_cfg',
         'val_cfg', 'test_cfg', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator',
         'auto_scale_lr', 'load_from', 'resume', 'default_scope', 'custom_imports', 'env_cfg')


def is_stock_again(cfg: Config, original: Config) -> None:
    back = student_config(cfg)
    for part in PARTS:
        assert plain(back.get(part)) == plain(original.get(part)), part
    assert plain(back.train_dataloader) == plain(original.train_dataloader)
    assert 'mmkd' not in back.pretty_text


@pytest.mark.parametrize('method', ['shake', 'kd', 'pkd'])
def test_prepared_and_reduced_is_stock(method):
    is_stock_again(prepare_config(composed(method), distributed=True), stock())


@pytest.mark.parametrize('name', ['shake_faster_rcnn_r50.py', 'kd_faster_rcnn_r50.py'])
def test_shipped_config_reduced_is_the_shipped_student(name):
    cfg = prepare_config(Config.fromfile(REPO / 'configs' / name))
    is_stock_again(cfg, Config.fromfile(REPO / 'configs/coco/student_faster_rcnn_r50.py'))


def test_student_alone_prepared_and_reduced_is_stock():
    is_stock_again(prepare_config(stock()), stock())


def test_all_that_can_be_ours_goes():
    cfg = composed()
    cfg.custom_imports = dict(imports=['my.models', 'mmkd', 'mmkd.extra'], allow_failed_imports=False)
    cfg.custom_hooks = [dict(type='NumClassCheckHook'), dict(type='mmkd.AnyHook')]
    cfg.load_from = 'mmkd-safe:a.pth'
    prepare_config(cfg)
    cfg.optim_wrapper.extra = dict(lr=0.1)
    back = student_config(cfg)
    assert back.custom_imports['imports'] == ['my.models']
    assert plain(back.custom_hooks) == [dict(type='NumClassCheckHook')]
    assert plain(back.optim_wrapper) == plain(stock().optim_wrapper)
    assert 'mmkd' not in back.pretty_text


def test_reducing_leaves_the_original_alone():
    cfg = prepare_config(composed())
    before = plain(cfg.to_dict())
    student_config(cfg)
    assert plain(cfg.to_dict()) == before
    assert is_distillation(cfg) and not is_distillation(student_config(cfg))


# Composing


def test_composing():
    cfg = compose_distillation(stock(), 'SHAKE', 'teacher.py', 'teacher.pth')
    assert cfg.model.type == 'mmkd.DetectorDistiller'
    assert plain(cfg.model.student) == plain(stock().model)
    assert plain(cfg.model.teacher) == dict(config='teacher.py', checkpoint='teacher.pth')
    assert plain(cfg.model.methods) == dict(shake=dict(type='mmkd.SHAKE'))


def test_composing_twice():
    with pytest.raises(MMKDError, match='already distills'):
        compose_distillation(composed(), 'kd', 'teacher.py', 'random')


@pytest.mark.parametrize(('method', 'offered'), [
    ('shak', "'shake'"), ('PDK', "'pkd'"), ('quux', 'known are')])
def test_composing_with_a_method_that_is_not_there(method, offered):
    cfg = stock()
    with pytest.raises(MMKDError, match=offered) as caught:
        compose_distillation(cfg, method, 'teacher.py', 'random')
    for name in ('kd', 'pkd', 'shake'):
        assert name in str(caught.value).split('known are')[1]
    assert plain(cfg.model) == plain(stock().model)


def test_composed_config_is_written_and_read_again(tmp_path):
    teacher = tiny_config('teacher')
    teacher.dump(tmp_path / 'teacher.py')
    cfg = compose_distillation(tiny_config(), 'shake', str(tmp_path / 'teacher.py'), 'random')
    prepare_config(cfg)
    cfg.dump(tmp_path / 'composed.py')
    again = Config.fromfile(tmp_path / 'composed.py')
    assert plain(again.to_dict()) == plain(cfg.to_dict())
    model = MODELS.build(again.model)
    assert list(model.mmkd.methods) == ['shake']
    names = {name for name in model.state_dict() if not name.startswith('mmkd.')}
    assert names == set(MODELS.build(tiny_config().model).state_dict())


def test_stock_config_in_pure_python(tmp_path):
    (tmp_path / 'stock.py').write_text(PURE_PYTHON.format(model=plain(tiny_config().model)))
    cfg = Config.fromfile(tmp_path / 'stock.py')
    assert isinstance(cfg.model.type, type) and isinstance(cfg.default_hooks.checkpoint.type, type)
    compose_distillation(cfg, 'shake', dict(model=tiny_config('teacher').model), 'random')
    prepare_config(cfg)
    assert cfg.default_hooks.checkpoint.type == 'mmkd.CheckpointHook'
    assert is_distillation(cfg)
    assert type(MODELS.build(cfg.model)).__name__ == 'DistilledFasterRCNN'
    back = student_config(cfg)
    assert 'mmkd' not in back.pretty_text
    cfg.dump(tmp_path / 'composed.py')
    back.dump(tmp_path / 'student.py')
    model = MODELS.build(Config.fromfile(tmp_path / 'composed.py').model)
    assert type(model).__name__ == 'DistilledFasterRCNN'
    student = MODELS.build(Config.fromfile(tmp_path / 'student.py').model)
    assert set(student.state_dict()) == {name for name in model.state_dict() if not name.startswith('mmkd.')}


@pytest.mark.parametrize(('model', 'expected'), [
    (distill(dict(), 'teacher.py'), True), (dict(type='DetectorDistiller'), True),
    (dict(type='FasterRCNN'), False), (dict(), False)])
def test_is_distillation(model, expected):
    assert is_distillation(Config(dict(model=model))) is expected


# Annotation files


def dataset(ann_file, **settings) -> dict:
    return dict(type='CocoDataset', ann_file=ann_file, **settings)


@pytest.fixture
def data(tmp_path):
    (tmp_path / 'there.json').write_text('{}')
    return str(tmp_path)


NESTED = {
    'plain': lambda leaf: leaf,
    'RepeatDataset': lambda leaf: dict(type='RepeatDataset', times=2, dataset=leaf),
    'ConcatDataset': lambda leaf: dict(type='ConcatDataset', datasets=[dataset(''), leaf]),
    'RepeatDataset of ConcatDataset': lambda leaf: dict(
        type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=(dataset(''), leaf))),
    'MultiImageMixDataset of ClassBalancedDataset': lambda leaf: dict(
        type='MultiImageMixDataset', dataset=dict(type='ClassBalancedDataset', dataset=leaf)),
}


@pytest.mark.parametrize('nest', NESTED)
@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_annotation_files(data, nest, kind):
    there = kind(dataset=NESTED[nest](dataset('there.json', data_root=data)))
    check_annotation_files(there, 'train_dataloader')
    missing = kind(dataset=NESTED[nest](dataset('none.json', data_root=data)))
    with pytest.raises(MMKDError, match='train_dataloader') as caught:
        check_annotation_files(missing, 'train_dataloader')
    assert f'{data}/none.json' in str(caught.value)


def test_annotation_files_that_cannot_be_looked_for(data):
    check_annotation_files(None, 'val_dataloader')
    check_annotation_files(dict(dataset=dict(type='VOCLike')), 'val_dataloader')
    for ann_file in ('', None, 's3://bucket/instances.json'):
        check_annotation_files(dict(dataset=dataset(ann_file, data_root=data)), 'val_dataloader')


def test_annotation_file_with_an_absolute_path(data):
    there = dict(dataset=dataset(f'{data}/there.json', data_root='/nowhere'))
    check_annotation_files(there, 'val_dataloader')
    missing = dict(dataset=dataset(f'{data}/none.json', data_root='/nowhere'))
    with pytest.raises(MMKDError, match=f"'{data}/none.json'"):
        check_annotation_files(missing, 'val_dataloader')


def test_annotation_file_of_an_evaluator(data):
    check_annotation_files(dict(type='CocoMetric', ann_file=f'{data}/there.json'), 'val_evaluator')
    for evaluator in (dict(type='CocoMetric', ann_file=f'{data}/none.json'),
                      [dict(type='Other'), dict(type='CocoMetric', ann_file=f'{data}/none.json')]):
        with pytest.raises(MMKDError, match='val_evaluator') as caught:
            check_annotation_files(evaluator, 'val_evaluator')
        assert 'none.json' in str(caught.value) and 'dataset' not in str(caught.value)
