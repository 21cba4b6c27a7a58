"""Misspelled keys and types of a config, and parts that cannot be built, end in one sentence."""
import pytest
from mmengine.config import Config

from mmkd.apis.checks import check_keys, explained_build_errors
from mmkd.errors import MMKDError
from mmkd.registry import MODELS
from tests.helpers.tiny import tiny_config

MISSPELLED = [
    # at the top
    ('train_dataloder.batch_size=4', "no 'train_dataloder'", "'train_dataloader'"),
    ('optim_wraper.optimizer.lr=1', "no 'optim_wraper'", "'optim_wrapper'"),
    ('modle.student.backbone.depth=18', "no 'modle'", "'model'"),
    ('defualt_hooks.checkpoint.interval=1', "no 'defualt_hooks'", "'default_hooks'"),
    ('epochs=3', "no 'epochs'"),
    ('lr=0.1', "no 'lr'"),
    # the distiller
    ('model.teachr.checkpoint=random', "no 'teachr'", "'teacher'"),
    ('model.studnet.backbone.depth=18', "no 'studnet'", "'student'"),
    ('model.method.kd.type=mmkd.KD', "no 'method'", "'methods'"),
    ('model.methods.shak.temperature=2', '`model.methods.shak` does not exist', "'shake'"),
    ('model.type=mmkd.DetectorDistler', "There is no model 'mmkd.DetectorDistler'", "'DetectorDistiller'"),
    # parts of MMDetection
    ('model.student.backbone.dpeth=18', '`model.student.backbone.dpeth` does not exist', "'depth'"),
    ('model.student.backbne.depth=18', '`model.student.backbne` does not exist', "'backbone'"),
    ('model.student.backbone.dilation_of_mine=2', "'ResNet' cannot be built", 'dilation_of_mine'),
    ('model.student.backbone.init_cfg=a.pth', 'The initial weights cannot be built', 'AssertionError'),
    ('model.student.backbone.depth=17', "'ResNet' cannot be built", 'KeyError', '17'),
    ('model.student.backbone.depth.layers=17', '--cfg-options cannot be set'),
    ('model.student.backbone.type=ResNett', "There is no model 'ResNett'", "'ResNet'"),
    ('model.student.type=FasterRNCN', "student type 'FasterRNCN' is not registered"),
    ('model.student.test_cfg.rcnn.score_tr=0.3', '`model.student.test_cfg.rcnn.score_tr`', "'score_thr'"),
    # training
    ('optim_wrapper.optimizr.lr=0.1', '`optim_wrapper.optimizr` does not exist', "'optimizer'"),
    ('optim_wrapper.optimizer.weight_decy=0', '`optim_wrapper.optimizer.weight_decy` d', "'weight_decay'"),
    ('optim_wrapper.optimizer.type=SDG', "There is no optimizer 'SDG'", "'SGD'"),
    ('optim_wrapper.optimizer.lr=-1', "'AdamW' cannot be built", 'Invalid learning rate'),
    ('optim_wrapper.extra.lrr=0.1', '`optim_wrapper.extra.lrr` does not exist', "'lr'"),
    ('optim_wrapper.extra.lr=fast', '`optim_wrapper.extra.lr` must be a finite number of at least 0'),
    ('optim_wrapper.extra=fast', '`extra` of the optimizer wrapper must be a dict'),
    ('train_cfg.max_epoch=3', '`train_cfg.max_epoch` does not exist', "'max_epochs'"),
    ('train_dataloader.batch_szie=4', '`train_dataloader.batch_szie` does not exist', "'batch_size'"),
    ('train_dataloader.my_setting=4', 'The dataloader cannot be built', 'my_setting'),
    ('train_dataloader.dataset.type=CocoDatset', "There is no dataset 'CocoDatset'", "'CocoDataset'"),
    ('train_dataloader.dataset.ann_fil=x.json', '`train_dataloader.dataset.ann_fil` does not', "'ann_file'"),
    ('train_dataloader.sampler.shuffel=False', '`train_dataloader.sampler.shuffel` does not', "'shuffle'"),
    ('auto_scale_lr.base_batchsize=8', '`auto_scale_lr.base_batchsize` does not', "'base_batch_size'"),
    # hooks
    ('default_hooks.teacher_chek.evaluate=False', '`default_hooks.teacher_chek` has no `type`',
     "'teacher_check'"),
    ('default_hooks.teacher_check.evalaute=False', '`evalaute` of TeacherCheckHook does not', "'evaluate'"),
    ('default_hooks.teacher_check.evaluate=no', '`evaluate` of TeacherCheckHook must be True or False'),
    ('default_hooks.checkpoint.intervla=1', '`default_hooks.checkpoint.intervla` does', "'interval'"),
    ('default_hooks.checkpoint.type=CheckpointHok', "There is no hook 'CheckpointHok'", "'CheckpointHook'"),
    ('default_hooks.schedule.type=mmkd.WeightScheduleHok', "There is no hook 'mmkd.WeightScheduleHok'",
     "'WeightScheduleHook'"),
]


@pytest.mark.parametrize(('option', 'words'), [(option, words) for option, *words in MISSPELLED])
def test_misspelled_option(train_config, option, words):
    train_config(*words, options=[option])


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'misc/dry_run.py', 'misc/cache_teacher.py',
                                  'analysis_tools/benchmark_step.py', 'analysis_tools/benchmark_loading.py'])
@pytest.mark.parametrize(('option', 'words'), [
    ('train_dataloder.batch_size=4', ("no 'train_dataloder'", "'train_dataloader'")),
    ('model.student.backbone.dpeth=18', ('`model.student.backbone.dpeth` does not exist', "'depth'"))])
def test_misspelled_option_of_every_tool(refused, files, tmp_path, tool, option, words):
    arguments = [files.distilling, *([files.weights] if tool == 'test.py' else [])]
    if tool in ('train.py', 'test.py'):
        arguments += ['--work-dir', tmp_path / 'work']
    refused(tool, [*arguments, '--cfg-options', option], *words)


@pytest.mark.parametrize(('change', 'words'), [
    (dict(train_dataloder=dict(batch_size=4)), ('`train_dataloder` does not exist', "'train_dataloader'")),
    (dict(custom_hooks=[dict(type='mmkd.WeightScheduleHook', wramup=3)]),
     ('`custom_hooks.0.wramup` does not exist', "'warmup'")),
    (dict(custom_hooks=[dict(type='mmkd.WeightScheduleHook', warmup=-3)]),
     ('`warmup` of WeightScheduleHook must be an integer of at least 0, not -3', )),
    (dict(custom_hooks=[dict(warmup=3)]), ('part without a `type`', 'warmup')),
    (dict(param_scheduler=[dict(type='MultiStepLR', milestone=[3])]),
     ('`param_scheduler.0.milestone` does not exist', "'milestones'")),
    (dict(param_scheduler=[dict(type='MultStepLR', milestones=[3])]),
     ("There is no parameter scheduler 'MultStepLR'", "'MultiStepLR'"))])
def test_misspelled_in_the_config(refused, files, tmp_path, change, words):
    cfg = Config.fromfile(files.distilling)
    cfg.merge_from_dict(change)
    cfg.dump(tmp_path / 'distilling.py')
    refused('train.py', [tmp_path / 'distilling.py', '--work-dir', tmp_path / 'work'], *words)


def test_names_that_only_resemble_others_are_left_alone():
    cfg = tiny_config()
    cfg.merge_from_dict(dict(
        train_pipeline=[], base_lr=0.1, train_cfg_2={}, model_2=dict(type='FasterRCNN'),
        custom_hooks=[dict(type='NumClassCheckHook', priority=40)]))
    cfg.model.backbone.norm_cfg = dict(type='BN', requires_grad=True)
    check_keys(cfg)


def test_debugging_shows_the_error_itself(monkeypatch):
    monkeypatch.setenv('MMKD_DEBUG', '1')
    with pytest.raises(KeyError, match='NoSuchLoss'), explained_build_errors():
        MODELS.build(dict(type='NoSuchLoss'))


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError), explained_build_errors():
        _ = 1 / 0


def test_the_cause_is_kept():
    with pytest.raises(MMKDError, match='MMKD_DEBUG=1') as error, explained_build_errors():
        MODELS.build(dict(type='NoSuchLoss'))
    assert isinstance(error.value.__cause__, KeyError)
