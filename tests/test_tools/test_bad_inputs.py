"""What a user gets wrong ends in one sentence, before the first step, and nothing is lost."""
import os
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.helpers.tiny import REPO, build

SAVE = {
    'zip': torch.save,
    'legacy': lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    'pickle': lambda content, path: path.write_bytes(pickle.dumps(content)),
}


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


@pytest.fixture(params=['config', '--distill'])
def train(request, refused, files, tmp_path):
    """Function that starts distillation by a config or by ``--distill``, and must be refused."""

    def train(*words, checkpoint=files.weights, config=files.teacher, options=()):
        if request.param == 'config':
            arguments = [files.distilling, '--cfg-options', f'model.teacher.config={config}',
                         f'model.teacher.checkpoint={checkpoint}', *options]
        else:
            arguments = [files.student, '--distill', 'shake', '--teacher', config,
                         '--teacher-checkpoint', checkpoint]
            if options:
                arguments += ['--cfg-options', *options]
        return refused('train.py', [*arguments, '--work-dir', tmp_path / 'work'], *words)

    return train


@pytest.fixture
def train_config(refused, files, tmp_path):
    """Function that starts the distilling config with options, and must be refused."""

    def train(*words, options=(), arguments=()):
        options = ['--cfg-options', *options] if options else []
        return refused(
            'train.py', [files.distilling, '--work-dir', tmp_path / 'work', *options, *arguments], *words)

    return train


# The teacher's checkpoint


def test_teacher_checkpoint_missing(train, tmp_path):
    train('teacher checkpoint', 'does not exist', tmp_path / 'none.pth', checkpoint=tmp_path / 'none.pth')


def test_teacher_checkpoint_is_a_folder(train, tmp_path):
    train('teacher checkpoint', 'not a file', checkpoint=tmp_path)


@pytest.mark.parametrize('share', [0.0, 0.5, 0.999])
def test_teacher_checkpoint_truncated(train, files, tmp_path, share):
    whole = Path(files.weights).read_bytes()
    path = tmp_path / 'half.pth'
    path.write_bytes(whole[:int(share * len(whole))])
    train('teacher checkpoint', path, 'truncated', checkpoint=path)


@pytest.mark.parametrize('content', [b'<html>404 Not Found</html>\n' * 50, bytes(range(256)) * 8])
def test_teacher_checkpoint_is_garbage(train, tmp_path, content):
    path = tmp_path / 'garbage.pth'
    path.write_bytes(content)
    train('teacher checkpoint', path, 'no PyTorch checkpoint', checkpoint=path)


@pytest.mark.parametrize(('content', 'words'), [
    ([torch.zeros(2)], 'list'),
    (dict(epoch=3, weights=dict(a=torch.zeros(2))), "has no \"state_dict\""),
])
def test_teacher_checkpoint_is_something_else(train_config, tmp_path, content, words):
    torch.save(content, tmp_path / 'other.pth')
    train_config(words, 'other.pth', options=[f'model.teacher.checkpoint={tmp_path / "other.pth"}'])


def test_teacher_checkpoint_of_another_architecture(train, tmp_path):
    weights = {'backbone.stem.conv.weight': torch.zeros(8, 3, 3, 3), 'head.fc.bias': torch.zeros(10)}
    torch.save(dict(state_dict=weights), tmp_path / 'other.pth')
    train('other.pth', 'does not fit FasterRCNN', 'missing backbone.conv1.weight',
          'unexpected ', 'backbone.stem.conv.weight', 'head.fc.bias', checkpoint=tmp_path / 'other.pth')


def test_teacher_checkpoint_lacks_one_tensor(train, files, tmp_path):
    content = torch.load(files.weights, weights_only=False)
    del content['state_dict']['rpn_head.rpn_cls.bias']
    torch.save(content, tmp_path / 'less.pth')
    sentence = train('less.pth', 'missing rpn_head.rpn_cls.bias', checkpoint=tmp_path / 'less.pth')
    assert 'unexpected' not in sentence and 'misshapen' not in sentence


def test_student_checkpoint_given_as_the_teachers(train, files, tmp_path):
    weights = build(Config.fromfile(files.student).model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'student.pth')
    train('student.pth', 'does not fit', 'backbone.conv1.weight is (8, 3, 7, 7) instead of (16, 3, 7, 7)',
          checkpoint=tmp_path / 'student.pth')


def test_teacher_checkpoint_with_another_class_count(train, files, tmp_path):
    content = torch.load(files.weights, weights_only=False)
    for name in ('weight', 'bias'):
        key = f'roi_head.bbox_head.fc_cls.{name}'
        content['state_dict'][key] = content['state_dict'][key][:6]
    torch.save(content, tmp_path / 'five.pth')
    train('five.pth', 'roi_head.bbox_head.fc_cls.weight is (6, 32) instead of (11, 32)',
          checkpoint=tmp_path / 'five.pth')


@pytest.mark.parametrize('form', SAVE)
def test_teacher_checkpoint_holds_code(train, files, tmp_path, form):
    content = torch.load(files.weights, weights_only=False)
    content['meta']['hook'] = Attack(tmp_path / 'executed')
    SAVE[form](content, tmp_path / 'attack.pth')
    train('teacher checkpoint', 'attack.pth', 'posix.mkdir', 'MMKD_ALLOW_UNSAFE_CHECKPOINTS=1',
          checkpoint=tmp_path / 'attack.pth')
    assert not (tmp_path / 'executed').exists()
    torch.load(tmp_path / 'attack.pth', weights_only=False) if form != 'pickle' else pickle.loads(
        (tmp_path / 'attack.pth').read_bytes())
    assert (tmp_path / 'executed').exists()  # the file was a real attack


def test_no_teacher_checkpoint(train_config, refused, files, tmp_path):
    train_config('teacher', 'no checkpoint', "'random'", options=['model.teacher.checkpoint=None'])
    refused('train.py', [files.student, '--distill', 'kd', '--teacher', files.teacher,
                         '--work-dir', tmp_path / 'work2'], 'no checkpoint')


def test_no_teacher_at_all(refused, files, tmp_path):
    refused('train.py', [files.student, '--distill', 'kd', '--work-dir', tmp_path / 'work'],
            '--distill needs --teacher')


# The teacher's config


def test_teacher_config_missing(train, tmp_path):
    train('teacher config', tmp_path / 'none.py', 'does not exist', config=tmp_path / 'none.py')


@pytest.mark.parametrize('name', ['mmdet::faster_rcnn/no_such.py', 'no_such_package::a/b.py'])
def test_teacher_config_missing_in_a_package(train_config, name):
    train_config('teacher config', name, options=[f'model.teacher.config={name}'])


@pytest.mark.parametrize(('name', 'content'), [
    ('teacher.pth', 'PK'), ('teacher.py', 'model = dict(type='), ('teacher.py', 'model = undefined'),
    ('teacher.py', 'lr = 0.1'), ('teacher.json', '{"model": '),
])
def test_teacher_config_unreadable(train, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    train('teacher config', tmp_path / name, config=tmp_path / name)


def test_base_of_the_teacher_config_missing(train_config, tmp_path):
    (tmp_path / 'teacher.py').write_text("_base_ = './no_such_base.py'")
    sentence = train_config('teacher config', 'no_such_base.py',
                            options=[f'model.teacher.config={tmp_path / "teacher.py"}'])
    assert f"{str(tmp_path / 'teacher.py')!r} does not exist" not in sentence


def test_teacher_config_with_an_unknown_model(train_config, tmp_path):
    (tmp_path / 'teacher.py').write_text("model = dict(type='FasterRNN')")
    train_config('teacher', 'FasterRNN', options=[f'model.teacher.config={tmp_path / "teacher.py"}'])


def test_unknown_key_in_teacher(train_config):
    train_config("'checkpiont'", "'checkpoint'", options=['model.teacher.checkpiont=a.pth'])


def test_teacher_without_config(refused, files, tmp_path):
    cfg = Config.fromfile(files.distilling)
    del cfg.model.teacher['config']
    cfg.dump(tmp_path / 'distilling.py')
    refused('train.py', [tmp_path / 'distilling.py', '--work-dir', tmp_path / 'work'], '`config`')


@pytest.mark.parametrize(('teachers', 'words'), [
    (['config'], ('list of such dicts', )),
    ([dict(config='none.py', checkpoint='random')], ('teacher config', 'none.py', 'does not exist')),
])
def test_wrong_entry_among_several_teachers(refused, files, tmp_path, teachers, words):
    cfg = Config.fromfile(files.distilling)
    cfg.model.teacher = [cfg.model.teacher, *teachers]
    cfg.dump(tmp_path / 'distilling.py')
    refused('train.py', [tmp_path / 'distilling.py', '--work-dir', tmp_path / 'work'], *words)


# Teachers that do not suit the student


CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64))
"""


@pytest.mark.skipif(find_spec('mmpretrain') is None, reason='needs MMPretrain')
def test_teacher_is_a_classifier(train, tmp_path):
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    train('ImageClassifier', 'no MMDetection detector', config=tmp_path / 'classifier.py',
          checkpoint='random')


def test_dense_teacher_of_a_two_stage_student(train):
    train('student is a two-stage detector', 'teacher a dense one', 'PKD',
          config='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', checkpoint='random')


@pytest.mark.parametrize(('name', 'words'), [
    ('retinanet/retinanet_r18_fpn_1x_coco.py', ('student is a dense detector', 'teacher a two-stage one')),
    ('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', ('10 classes', '80', 'class_mapping')),
])
def test_student_that_judges_other_boxes_or_classes(refused, files, tmp_path, name, words):
    cfg = Config.fromfile(files.distilling)
    cfg.model.student = Config.fromfile(find_spec('mmdet').submodule_search_locations[0]
                                        + f'/.mim/configs/{name}').model
    cfg.dump(tmp_path / 'distilling.py')
    refused('train.py', [tmp_path / 'distilling.py', '--work-dir', tmp_path / 'work'], *words)


@pytest.fixture
def teacher_of_12(files, tmp_path):
    """Options of a teacher that knows twelve classes."""
    cfg = Config.fromfile(files.teacher)
    cfg.model.roi_head.bbox_head.num_classes = 12
    cfg.dump(tmp_path / 'twelve.py')
    torch.save(dict(state_dict=build(cfg.model).state_dict()), tmp_path / 'twelve.pth')
    return [f'model.teacher.config={tmp_path / "twelve.py"}',
            f'model.teacher.checkpoint={tmp_path / "twelve.pth"}']


def test_teacher_with_other_classes_needs_a_mapping(train_config, teacher_of_12):
    train_config('12 classes', 'student 10', 'class_mapping', options=teacher_of_12)


@pytest.mark.parametrize('mapping', ['[0,1,2]', '[0,1,2,3,4,5,6,7,8,12]', '[-1,1,2,3,4,5,6,7,8,9]',
                                     '[a,b,c,d,e,f,g,h,i,j]'])
def test_wrong_mapping(train_config, teacher_of_12, mapping):
    train_config('class_mapping must hold 10 indices below 12',
                 options=[*teacher_of_12, f'model.teacher.class_mapping={mapping}'])


def test_right_mapping_trains(run, files, teacher_of_12, tmp_path):
    ended = run('train.py', files.distilling, '--work-dir', tmp_path / 'work', '--cfg-options',
                *teacher_of_12, 'model.teacher.class_mapping=[11,10,9,8,7,6,5,4,3,2]')
    assert ended.code == 0, ended.err
    assert (tmp_path / 'work/epoch_1.pth').is_file()


@pytest.mark.slow
def test_mapping_holds_for_the_check_of_the_teacher(run, files, teacher_config, teacher_checkpoint, tmp_path):
    # The same teacher, whose classes stand in another order.
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    content = torch.load(teacher_checkpoint, weights_only=False)
    content['meta']['dataset_meta']['classes'] = tuple('0123456789'[index] for index in order)
    rows = dict(fc_cls=[*order, 10], fc_reg=[4 * index + side for index in order for side in range(4)])
    for layer, indices in rows.items():
        for part in ('weight', 'bias'):
            key = f'roi_head.bbox_head.{layer}.{part}'
            content['state_dict'][key] = content['state_dict'][key][indices]
    torch.save(content, tmp_path / 'permuted.pth')
    mapping = ','.join(str(order.index(label)) for label in range(10))
    told = []
    for work_dir, options in (('a', [f'model.teacher.checkpoint={teacher_checkpoint}']),
                              ('b', [f'model.teacher.checkpoint={tmp_path / "permuted.pth"}',
                                     f'model.teacher.class_mapping=[{mapping}]'])):
        ended = run('train.py', files.distilling, '--work-dir', tmp_path / work_dir, '--cfg-options',
                    f'model.teacher.config={teacher_config}', *options)
        assert ended.code == 0, ended.err
        told.append({name: float(value) for name, value in re.findall(
            r'(coco/\w+) (-?[\d.]+)', re.search('Teacher: coco.*', ended.out)[0])})
    assert told[0]['coco/bbox_mAP'] > 0.001
    assert told[0] == told[1]


def test_other_class_names_need_a_mapping(train, files, tmp_path):
    content = torch.load(files.weights, weights_only=False)
    content['meta']['dataset_meta']['classes'] = tuple('0132456789')
    torch.save(content, tmp_path / 'permuted.pth')
    train('from class 2', "['3', '2', '4']", "['2', '3', '4']", 'class_mapping',
          checkpoint=tmp_path / 'permuted.pth')


# Methods


def test_misspelt_distill(refused, files, tmp_path):
    refused('train.py', [files.student, '--distill', 'shkae', '--teacher', files.teacher,
                         '--teacher-checkpoint', files.weights, '--work-dir', tmp_path / 'work'],
            "no method 'shkae'", "nearest names are 'shake'")


@pytest.mark.parametrize(('kind', 'offered'), [
    ('mmkd.SHAEK', "'SHAKE'"), ('SHAEK', "'SHAKE'"), ('mmkd.PDK', "'PKD'"), ('mkd.SHAKE', "'SHAKE'"),
    ('mmkd.FeatureDistil', "'FeatureDistill'"),
])
def test_misspelt_method(train_config, kind, offered):
    train_config(repr(kind), 'nearest names are', offered,
                 options=[f'model.methods.shake.type={kind}'])


def test_another_thing_as_a_method(train_config):
    train_config('PKDLoss', 'not a method', options=['model.methods.shake.type=mmkd.PKDLoss'])


def test_method_without_type(train_config):
    train_config("'other'", '`type`', options=['model.methods.other.temperature=2'])


@pytest.mark.parametrize('name', ['items', 'my.kd'])
def test_impossible_name_of_a_method(refused, files, tmp_path, name):
    methods(refused, files, tmp_path, {name: dict(type='mmkd.KD')}, repr(name))


@pytest.mark.parametrize(('kind', 'setting'), [('SHAKE', 'temprature'), ('KD', 'depth')])
def test_unknown_setting_of_a_method(train_config, kind, setting):
    train_config("'shake'", repr(setting), options=[
        f'model.methods.shake.type=mmkd.{kind}', f'model.methods.shake.{setting}=4'])


@pytest.mark.parametrize(('setting', 'value', 'word'), [
    ('temperature', 0, 'above 0'), ('depth', 'heda', "'heda'"), ('placement', 'techer', "'techer'")])
def test_wrong_value_of_a_setting(train_config, setting, value, word):
    train_config(word, options=[f'model.methods.shake.{setting}={value}'])


def methods(refused, files, tmp_path, methods, *words):
    cfg = Config.fromfile(files.distilling)
    cfg.model.methods = methods
    cfg.dump(tmp_path / 'distilling.py')
    return refused('train.py', [tmp_path / 'distilling.py', '--work-dir', tmp_path / 'work'], *words)


def test_no_methods(refused, files, tmp_path):
    methods(refused, files, tmp_path, {}, '`methods` is empty')


@pytest.mark.parametrize(('spots', 'model'), [
    (dict(spot='nek'), 'FasterRCNN'),
    (dict(spot='nek', teacher_spot='neck'), 'student DistilledFasterRCNN'),
    (dict(spot='neck', teacher_spot='nek'), 'teacher FasterRCNN'),
])
def test_misspelt_spot(refused, files, tmp_path, spots, model):
    settings = dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.PKDLoss'), **spots)
    sentence = methods(refused, files, tmp_path, dict(pkd=settings), model, "no spot 'nek'")
    assert sentence.split('nearest names are ')[1].startswith("'neck'")


def test_misspelt_loss_of_a_method(refused, files, tmp_path):
    methods(refused, files, tmp_path,
            dict(pkd=dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.PKDLos'))), 'PKDLos')


@pytest.mark.parametrize(('proxy', 'words'), [
    (dict(type='mmkd.ShadwoHead'), ("'mmkd.ShadwoHead'", "nearest names are 'ShadowHead'")),
    (dict(type='mmkd.ShadowHead', towr='head'), ("'mmkd.ShadowHead'", "'towr'")),
    (dict(type='mmkd.PKDLoss'), ("'mmkd.PKDLoss'", 'not a proxy')),
])
def test_wrong_proxy_of_a_method(refused, files, tmp_path, proxy, words):
    methods(refused, files, tmp_path, dict(shake=dict(type='mmkd.ProxyDistill', proxy=proxy)), *words)


def test_spot_without_feature_maps(refused, files, tmp_path):
    methods(refused, files, tmp_path, dict(pkd=dict(type='mmkd.PKD', spot='rpn_head')),
            "'rpn_head'", 'not reached')


def test_channels_that_do_not_match(refused, files, tmp_path):
    pkd = dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.PKDLoss'), spot='backbone.layer3')
    methods(refused, files, tmp_path, dict(pkd=pkd),
            "'backbone.layer3'", 'channels [32]', '[64]', 'give a `connector`')


def test_channels_of_the_neck_do_not_match(refused, files, tmp_path):
    # The one-line form.
    cfg = Config.fromfile(files.teacher)
    cfg.model.neck.out_channels = 24
    cfg.model.rpn_head.in_channels = 24
    cfg.model.roi_head.bbox_roi_extractor.out_channels = 24
    cfg.model.roi_head.bbox_head.in_channels = 24
    cfg.dump(tmp_path / 'wide.py')
    refused('train.py', [files.student, '--distill', 'pkd', '--teacher', tmp_path / 'wide.py',
                         '--teacher-checkpoint', 'random', '--work-dir', tmp_path / 'work', '--cfg-options',
                         'model.methods.pkd.connector=None'],
            "'neck'", 'channels [16, 16, 16, 16, 16]', '[24, 24, 24, 24, 24]')


# Arguments, data and folders


def test_teacher_without_distill(refused, files, tmp_path):
    refused('train.py', [files.student, '--teacher', files.teacher, '--work-dir', tmp_path / 'work'],
            '--distill METHOD')


def test_distilling_config_with_distill(refused, files, tmp_path):
    refused('train.py', [files.distilling, '--distill', 'kd', '--teacher', files.teacher,
                         '--teacher-checkpoint', files.weights, '--work-dir', tmp_path / 'work'],
            'distils already')


def test_teacher_options_of_a_stock_config(refused, files, tmp_path):
    refused('train.py', [files.student, '--distill', 'kd', '--teacher', files.teacher,
                         '--teacher-checkpoint', 'random', '--work-dir', tmp_path / 'work',
                         '--cfg-options', 'teacher.checkpoint=other.pth'], 'model.teacher', '--cfg-options')


@pytest.mark.parametrize(('key', 'instead'), [
    ('teacher.checkpoint', 'model.teacher.checkpoint'),
    ('methods.shake.weight', 'model.methods.shake.weight'),
    ('student.test_cfg.rcnn', 'model.student.test_cfg.rcnn'),
    ('model.backbone.depth', 'model.student.backbone.depth')])
@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'misc/dry_run.py'])
def test_options_that_would_change_nothing(refused, files, tmp_path, tool, key, instead):
    words = [] if tool == 'misc/dry_run.py' else ['--work-dir', tmp_path / 'work']
    refused(tool, [files.distilling, *([files.weights] if tool == 'test.py' else []), *words,
                   '--cfg-options', f'{key}=1'], f'set {instead} instead of {key}')


@pytest.mark.parametrize(('option', 'said'), [('train_cfg.max_epochs', 'KEY=VALUE, without spaces'),
                                          ('a=[1,(2]', 'brackets')])
@pytest.mark.parametrize('tool', ['train.py', 'misc/dry_run.py', 'misc/cache_teacher.py',
                                  'analysis_tools/benchmark_step.py', 'analysis_tools/benchmark_loading.py'])
def test_an_option_that_cannot_be_read(run, files, tool, option, said):
    ended = run(tool, files.distilling, '--cfg-options', 'a.b=1', option)
    assert ended.code == 2
    assert 'error: --cfg-options: ' in ended.err and said in ended.err


@pytest.mark.parametrize(('tool', 'option', 'value'), [
    ('misc/dry_run.py', '--batch', '0'), ('misc/dry_run.py', '--size', '-1'),
    ('misc/dry_run.py', '--steps', 'two'), ('analysis_tools/benchmark_step.py', '--iters', '0'),
    ('misc/cache_teacher.py', '--batch-size', '0'), ('misc/cache_teacher.py', '--workers', '-1')])
def test_numbers_too_small(run, files, tool, option, value):
    ended = run(tool, files.distilling, option, value)
    assert ended.code == 2
    assert f'argument {option}: must be a whole number from ' in ended.err and repr(value) in ended.err


@pytest.mark.parametrize('tool', ['misc/dry_run.py', 'misc/cache_teacher.py',
                                  'analysis_tools/benchmark_step.py'])
@pytest.mark.parametrize('device', ['gpu', 'cuda:99'])
def test_a_device_that_is_not_there(run, files, tool, device):
    ended = run(tool, files.distilling, '--device', device)
    assert ended.code == 2 and f'argument --device: {device!r} cannot be used here' in ended.err


@pytest.mark.parametrize(('launcher', 'variable'), [
    ('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK')])
@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_a_launcher_that_did_not_start_this(refused, files, tmp_path, monkeypatch, tool, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    refused(tool, [files.student, *([files.weights] if tool == 'test.py' else []), '--work-dir',
                   tmp_path / 'work', '--launcher', launcher], f'--launcher {launcher}', variable)


@pytest.mark.parametrize(('tool', 'arguments', 'said'), [
    ('misc/dry_run.py', [], 'does not distil'),
    ('model_converters/export_teacher.py', ['out.pth', '--config'], 'does not distil'),
    ('analysis_tools/benchmark_loading.py', [], 'no training config')])
def test_a_config_without_a_model(refused, files, tool, arguments, said):
    schedule = str(REPO / 'configs/_base_/schedules/crd_240e.py')
    refused(tool, [*([files.weights] if arguments else []), *arguments, schedule], 'crd_240e.py', said)


@pytest.mark.parametrize(('tool', 'arguments'), [
    ('test.py', lambda files, out: [files.teacher, files.weights, '--out', out / 'found.pkl']),
    ('model_converters/export_student.py', lambda files, out: [files.weights, out / 'student.pth']),
    ('model_converters/export_teacher.py',
     lambda files, out: [files.weights, out / 'teacher.pth', '--config', files.distilling])])
def test_outputs_that_cannot_be_written(refused, files, tmp_path, tool, arguments):
    (tmp_path / 'file').write_text('precious')
    words = ['--work-dir', tmp_path / 'work'] if tool == 'test.py' else []
    refused(tool, [*arguments(files, tmp_path / 'file'), *words], tmp_path / 'file', 'cannot be written')


def test_predictions_to_a_folder(refused, files, tmp_path):
    (tmp_path / 'found.pkl').mkdir()
    refused('test.py', [files.teacher, files.weights, '--work-dir', tmp_path / 'work', '--out',
                        tmp_path / 'found.pkl'], tmp_path / 'found.pkl', 'is a folder')


@pytest.mark.skipif(torch.cuda.is_available(), reason='mixed precision works with a GPU')
def test_amp_without_a_gpu(train_config):
    train_config('--amp needs a GPU', arguments=['--amp'])


def test_auto_scale_lr_without_a_batch_size(refused, files, tmp_path):
    cfg = Config.fromfile(files.student)
    cfg.pop('auto_scale_lr')
    cfg.dump(tmp_path / 'student.py')
    refused('train.py', [tmp_path / 'student.py', '--auto-scale-lr', '--work-dir', tmp_path / 'work'],
            'auto_scale_lr.base_batch_size')


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_config_missing(refused, files, tmp_path, tool):
    refused(tool, [tmp_path / 'none.py', *([files.weights] if tool == 'test.py' else [])],
            tmp_path / 'none.py')


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
@pytest.mark.parametrize(('name', 'content'), [('broken.py', 'model = dict('), ('broken.yaml', 'a: [1'),
                                           ('weights.pth', 'PK'), ('plain.py', 'lr = 1')])
def test_config_unreadable(refused, files, tmp_path, tool, name, content):
    (tmp_path / name).write_text(content)
    refused(tool, [tmp_path / name, *([files.weights] if tool == 'test.py' else []),
                   '--work-dir', tmp_path / 'work'], tmp_path / name)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotation_file_missing(train, split):
    train('annotation file', 'none.json', f'{split}_dataloader.dataset',
          options=[f'{split}_dataloader.dataset.ann_file=none.json'])


def test_annotation_file_of_the_evaluator_missing(train):
    train('annotation file', 'none.json', 'val_evaluator', options=['val_evaluator.ann_file=none.json'])


def test_test_annotation_file_missing(refused, files, tmp_path):
    arguments = [files.teacher, files.weights, '--work-dir', tmp_path / 'work', '--cfg-options']
    refused('test.py', [*arguments, 'test_dataloader.dataset.ann_file=none.json'],
            'annotation file', 'none.json', 'test_dataloader')
    refused('test.py', [*arguments, 'test_evaluator.ann_file=none.json'],
            'annotation file', 'none.json', 'test_evaluator')


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_work_dir_below_a_file(refused, files, tmp_path, tool):
    (tmp_path / 'file').write_text('precious')
    config = [files.distilling] if tool == 'train.py' else [files.teacher, files.weights]
    refused(tool, [*config, '--work-dir', tmp_path / 'file/work'], 'work directory',
            tmp_path / 'file/work', 'cannot be written')


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root may write everywhere')
def test_work_dir_read_only(train_config, tmp_path):
    (tmp_path / 'work').mkdir(mode=0o555)
    train_config('work directory', 'Permission denied')


@pytest.mark.parametrize('name', ['epoch_3.pth', 'iter_500.pth', 'best_coco_bbox_mAP_epoch_2.pth'])
def test_work_dir_holds_a_run(train, tmp_path, name):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / name).write_bytes(b'twelve hours of training')
    train('work directory', tmp_path / 'work', 'already holds a run', '--resume')
    assert (tmp_path / 'work' / name).read_bytes() == b'twelve hours of training'


def test_failed_start_does_not_block_the_next(train_config, run, files, tmp_path):
    train_config('does not exist', options=['model.teacher.checkpoint=none.pth'])
    ended = run('train.py', files.distilling, '--work-dir', tmp_path / 'work')
    assert ended.code == 0, ended.err
    assert (tmp_path / 'work/epoch_1.pth').is_file()


# Going on from checkpoints


def with_code(path, weights, marker):
    content = torch.load(weights, weights_only=False)
    content['optimizer'] = Attack(marker)
    torch.save(content, path)


@pytest.mark.parametrize('way', ['--resume', '--resume FILE', 'load_from'])
@pytest.mark.parametrize('form', ['student', 'distilling'])
def test_going_on_from_a_file_that_holds_code(refused, files, tmp_path, way, form):
    (tmp_path / 'work').mkdir()
    attack = tmp_path / 'work/epoch_1.pth' if way == '--resume' else tmp_path / 'attack.pth'
    with_code(attack, files.weights, tmp_path / 'executed')
    arguments = {'--resume': ['--resume'], '--resume FILE': ['--resume', attack],
                 'load_from': ['--cfg-options', f'load_from={attack}']}[way]
    refused('train.py', [getattr(files, form), '--work-dir', tmp_path / 'work', *arguments],
            attack, 'posix.mkdir', 'MMKD_ALLOW_UNSAFE_CHECKPOINTS=1')
    assert not (tmp_path / 'executed').exists()


def test_resuming_does_not_run_the_config_in_the_file(run, files, tmp_path):
    # MMEngine's Runner executes the text that it finds under meta.config of a resumed checkpoint.
    student = build(Config.fromfile(files.student).model)
    meta = dict(epoch=0, iter=0, config=f'import os\nos.mkdir({str(tmp_path / "executed")!r})\nlr = 1\n')
    torch.save(dict(meta=meta, state_dict=student.state_dict(), message_hub={
        name: {} for name in ('log_scalars', 'runtime_info', 'resumed_keys')}), tmp_path / 'attack.pth')
    ended = run('train.py', files.student, '--work-dir', tmp_path / 'work',
                '--resume', tmp_path / 'attack.pth')
    assert not (tmp_path / 'executed').exists()
    assert ended.code == 0, ended.err


def test_resuming_from_a_missing_file(train_config, tmp_path):
    train_config(tmp_path / 'none.pth', 'does not exist', arguments=['--resume', tmp_path / 'none.pth'])


def test_resuming_from_bare_weights(refused, files, tmp_path):
    weights = build(Config.fromfile(files.student).model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'bare.pth')
    refused('train.py', [files.student, '--work-dir', tmp_path / 'work', '--resume', tmp_path / 'bare.pth'],
            tmp_path / 'bare.pth', 'weights only', 'load_from')


@pytest.mark.parametrize(('form', 'tensor'), [('teacher', 'backbone.bn1.bias'), ('student', 'mmkd.')])
def test_resuming_from_another_model(refused, files, tmp_path, form, tensor):
    # 'student': the run of a student alone does not go on as one with SHAKE.
    weights = build(Config.fromfile(getattr(files, form)).model).state_dict()
    hub = {name: {} for name in ('log_scalars', 'runtime_info', 'resumed_keys')}
    torch.save(
        dict(meta=dict(epoch=0, iter=0), state_dict=weights, message_hub=hub), tmp_path / 'epoch_1.pth')
    config = files.student if form == 'teacher' else files.distilling
    refused('train.py', [config, '--work-dir', tmp_path / 'work', '--resume', tmp_path / 'epoch_1.pth'],
            tmp_path / 'epoch_1.pth', 'another model', tensor, 'load_from')


@pytest.mark.parametrize('form', SAVE)
def test_testing_a_file_that_holds_code(refused, files, tmp_path, form):
    SAVE[form](dict(state_dict=dict(weight=Attack(tmp_path / 'executed'))), tmp_path / 'attack.pth')
    refused('test.py', [files.student, tmp_path / 'attack.pth', '--work-dir', tmp_path / 'work'],
            'attack.pth', 'posix.mkdir', 'MMKD_ALLOW_UNSAFE_CHECKPOINTS=1')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('form', ['student', 'distilling'])
def test_testing_a_checkpoint_of_another_model(refused, files, tmp_path, form):
    refused('test.py', [getattr(files, form), files.weights, '--work-dir', tmp_path / 'work'],
            files.weights, 'does not fit FasterRCNN', 'backbone.conv1.weight is (16, 3, 7, 7)')


def test_testing_a_missing_or_broken_checkpoint(refused, files, tmp_path):
    refused('test.py', [files.student, tmp_path / 'none.pth', '--work-dir', tmp_path / 'work'],
            tmp_path / 'none.pth', 'does not exist')
    (tmp_path / 'broken.pth').write_bytes(Path(files.weights).read_bytes()[:5000])
    refused('test.py', [files.student, tmp_path / 'broken.pth', '--work-dir', tmp_path / 'work'],
            'broken.pth', 'truncated')


def test_predictions_to_a_file_that_is_no_pickle(refused, files, tmp_path):
    refused('test.py', [files.teacher, files.weights, '--work-dir', tmp_path / 'work',
                        '--out', tmp_path / 'predictions.json'], '--out', '.pkl')


# The whole way, as a user sees it


def test_scripts_find_the_checkout_with_an_exported_cdpath():
    done = subprocess.run(
        ['bash', '-c', f'source {REPO.name}/tools/common.sh; echo "$ROOT"'], cwd=REPO.parent, text=True,
        capture_output=True, env={**os.environ, 'CDPATH': str(REPO.parent)})
    assert done.stdout == f'{REPO}\n', done.stderr


def test_quickstart_finds_mmkd_where_it_is_not_installed(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$PYTHONPATH"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ['bash', REPO / 'tools/quickstart.sh'], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, 'MMKD_PYTHON': './python', 'PYTHONPATH': '/other'})
    assert done.stdout == f'{REPO}:/other\n', done.stderr


@pytest.mark.slow
def test_a_process_ends_with_status_2_and_no_traceback(files, tmp_path):
    arguments = [files.distilling, '--work-dir', str(tmp_path / 'work'),
                 '--cfg-options', 'model.methods.shake.type=mmkd.SHAEK']
    ended = subprocess.run(
        [sys.executable, 'tools/train.py', *arguments], cwd=REPO, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'})
    assert ended.returncode == 2
    assert 'Traceback' not in ended.stderr
    told = [line for line in ended.stderr.splitlines() if line.startswith('error: ')]
    assert len(told) == 1 and "'SHAKE'" in told[0]
    assert ended.stderr.rstrip().endswith(told[0])
