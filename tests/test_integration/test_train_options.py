"""What users do with a run besides training it: each with a real training through 'mmkd train'."""
import json
from glob import glob

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import MODELS

from mmkd.checkpoints import load_checkpoint, student_state_dict
from tests.helpers.families import detector
from tests.helpers.tiny import distill, forget_runs, run_command, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture
def train(tmp_path, monkeypatch, digits, teacher_config, teacher_checkpoint):
    """Run 'mmkd train' for four iterations and return its work directory."""
    cfg = tiny_config(data=digits)
    cfg.model = distill(cfg.model, teacher_config, teacher_checkpoint)
    cfg.train_cfg.update(max_epochs=1, val_interval=10)
    cfg.param_scheduler = []
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.teacher_check = dict(evaluate=False)

    def run(*options: str, name: str = 'run', **settings):
        config = Config(cfg.to_dict())
        config.merge_from_dict(settings)
        config.dump(tmp_path / f'{name}.py')
        work_dir = tmp_path / name
        forget_runs()
        run_command('train', tmp_path / f'{name}.py', '--work-dir', work_dir, *options)
        return work_dir

    return run


def logged(work_dir) -> list[dict]:
    (path, ) = glob(f'{work_dir}/*/vis_data/scalars.json')
    with open(path) as lines:
        return [entry for entry in map(json.loads, lines) if 'loss' in entry]


def weights(work_dir) -> dict:
    return load_checkpoint(f'{work_dir}/epoch_1.pth')['state_dict']


def test_ema(train):
    plain = weights(train(name='plain'))
    run = train(name='ema', custom_hooks=[dict(type='EMAHook', momentum=0.5)])
    checkpoint = load_checkpoint(f'{run}/epoch_1.pth')
    averaged = checkpoint['state_dict']['backbone.conv1.weight']
    assert 'ema_state_dict' in checkpoint
    assert not torch.equal(averaged, plain['backbone.conv1.weight'])
    assert not any('teacher' in name for name in checkpoint['ema_state_dict'])


def test_gradient_accumulation(train):
    """Two half batches accumulated: half as many updates, all losses finite."""
    run = train(**{'optim_wrapper.accumulative_counts': 2, 'train_dataloader.batch_size': 4})
    entries = logged(run)
    assert len(entries) == 8
    checkpoint = load_checkpoint(f'{run}/epoch_1.pth')
    assert {int(state['step']) for state in checkpoint['optimizer']['state'].values()} == {4}


def test_fine_tuning_starts_from_the_students_weights(train):
    first = train(name='first')
    run = train(name='second', load_from=f'{first}/epoch_1.pth',
                **{'optim_wrapper.optimizer.lr': 0.0, 'optim_wrapper.optimizer.weight_decay': 0.0})
    mine, other = weights(run), weights(first)
    assert all(torch.equal(mine[name], other[name]) for name, _ in other.items()
               if name.endswith('weight'))


def test_cfg_options_reach_the_student(train):
    run = train('--cfg-options', 'model.student.roi_head.bbox_head.fc_out_channels=24',
                'model.methods.shake.weight=0', 'model.methods.shake.teacher_to_proxy=1')
    assert weights(run)['roi_head.bbox_head.shared_fcs.0.weight'].shape[0] == 24
    assert weights(run)['mmkd.methods.shake.proxies.0.heads.0.shared_fcs.0.weight'].shape[0] == 24
    assert all(entry['shake.loss_student'] == 0 < entry['shake.loss_proxy_teacher']
               for entry in logged(run))


def test_auto_scale_lr(train):
    run = train('--auto-scale-lr', **{'auto_scale_lr.base_batch_size': 16})
    assert logged(run)[0]['lr'] == pytest.approx(0.5e-3)


def test_the_teacher_is_evaluated_first_and_that_changes_nothing(train):
    plain = train(name='plain')
    run = train(name='checked', **{'default_hooks.teacher_check': dict(evaluate=True, minimum=0.99)})
    (log, ) = glob(f'{run}/*/*.log')
    with open(log) as file:
        text = file.read()
    assert 'Teacher: coco/bbox_mAP' in text and 'THE TEACHER IS POOR' in text
    losses = [[{key: value for key, value in entry.items() if 'loss' in key} for entry in logged(path)]
              for path in (plain, run)]
    assert losses[0] == losses[1]


def test_activation_checkpointing(train):
    """Of a part in which no spot lies."""
    run = train(activation_checkpointing=['backbone'])
    assert len(logged(run)) == 4


STOCK = ['mmdet::pafpn/faster-rcnn_r50_pafpn_1x_coco.py',
         'mmdet::regnet/faster-rcnn_regnetx-3.2GF_fpn_1x_coco.py']


@pytest.mark.parametrize('stock', STOCK)
def test_distilling_a_stock_config_in_one_line(stock, tmp_path, monkeypatch, digits, teacher_config,
                                               teacher_checkpoint):
    """Only the data and the number of classes are set to the digits'."""
    # As an option, MMEngine would read these names as numbers.
    monkeypatch.setitem(CocoDataset.METAINFO, 'classes', tuple('0123456789'))
    options = {
        'model.student.backbone.init_cfg': None,
        'model.student.roi_head.bbox_head.num_classes': 10,
        'train_dataloader.num_workers': 0,
        'train_dataloader.dataset.indices': 4,
        'train_dataloader.dataset.data_root': f'{digits}/',
        'train_dataloader.dataset.data_prefix.img': 'train/',
        'train_dataloader.dataset.ann_file': 'annotations/instances_train.json',
        'train_cfg.max_epochs': 1,
        'val_dataloader': None,
        'val_evaluator': None,
        'val_cfg': None,
        'default_hooks.logger.interval': 1,
        'train_dataloader.dataset.pipeline.2.scale': (160, 160),
    }
    run_command('train', stock, '--work-dir', tmp_path / 'run', '--distill', 'shake', '--teacher',
                teacher_config, '--teacher-checkpoint', teacher_checkpoint, '--cfg-options',
                *(f'{key}={value}'.replace(' ', '') for key, value in options.items()))
    assert logged(tmp_path / 'run')[-1]['shake.loss_proxy_student'] > 0
    saved = Config.fromfile(tmp_path / 'run' / stock.split('/')[-1])
    assert saved.model.methods.shake.type == 'mmkd.SHAKE'


@pytest.mark.parametrize(('family', 'method'), [
    ('cascade_rcnn', 'sokd'), ('retinanet', 'shake'), ('fcos', 'kdtuned'), ('atss', 'kd'), ('gfl', 'sokd'),
    ('rtmdet', 'shake'), ('yolox', 'kd'), ('faster_rcnn', 'dml')])
def test_distilling_every_family_in_one_line(family, method, tmp_path, monkeypatch, digits):
    """From a stock config to a checkpoint that the stock detector loads; DML without a teacher."""
    for name, size in (('student', 8), ('teacher', 16)):
        cfg = tiny_config(data=digits)
        cfg.model = detector(family, size, classes=10)
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        cfg.param_scheduler = []
        cfg.default_hooks.logger.interval = 1
        cfg.dump(tmp_path / f'{name}.py')
    teacher = ['--teacher', str(tmp_path / 'teacher.py'), '--teacher-checkpoint', 'random']
    run_command('train', tmp_path / 'student.py', '--work-dir', tmp_path / 'run', '--distill', method,
                *(teacher if method != 'dml' else []))
    entries = logged(tmp_path / 'run')
    assert len(entries) == 4 and all(entry[f'{method}.loss_student'] > 0 for entry in entries)
    saved = load_checkpoint(f'{tmp_path}/run/epoch_1.pth')
    stock = MODELS.build(Config.fromstring(saved['meta']['cfg'], '.py').model)
    stock.load_state_dict(student_state_dict(saved))
