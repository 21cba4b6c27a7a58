"""A teacher that cannot be used is refused in one sentence, before the first step."""
import pickle
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.helpers.attacks import SAVE, Attack
from tests.helpers.tiny import build

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
    train('teacher checkpoint', path, 'not a PyTorch checkpoint', checkpoint=path)


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
    train_config('`model.teacher.checkpiont` does not exist', "'checkpoint'",
                 options=['model.teacher.checkpiont=a.pth'])


def test_teacher_without_config(refused, files, tmp_path):
    cfg = Config.fromfile(files.distilling)
    del cfg.model.teacher['config']
    cfg.dump(tmp_path / 'distilling.py')
    refused('train.py', [tmp_path / 'distilling.py', '--work-dir', tmp_path / 'work'],
            '`model.teacher.config` is missing')


@pytest.mark.parametrize(('teachers', 'words'), [
    (['config'], ('`teacher.1` of DetectorDistiller must be a dict', )),
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


def test_teacher_is_a_classifier(train, tmp_path):
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    train('ImageClassifier', 'not an MMDetection detector', config=tmp_path / 'classifier.py',
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


@pytest.mark.parametrize('mapping', ['[0,1,2]', '[0,1,2,3,4,5,6,7,8,12]'])
def test_wrong_mapping(train_config, teacher_of_12, mapping):
    train_config('class_mapping must hold 10 indices below 12',
                 options=[*teacher_of_12, f'model.teacher.class_mapping={mapping}'])


@pytest.mark.parametrize('mapping', ['[-1,1,2,3,4,5,6,7,8,9]', '[a,b,c,d,e,f,g,h,i,j]'])
def test_mapping_to_something_else(train_config, teacher_of_12, mapping):
    train_config('`model.teacher.class_mapping.0` must be an integer of at least 0',
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
    logged = []
    for work_dir, options in (('a', [f'model.teacher.checkpoint={teacher_checkpoint}']),
                              ('b', [f'model.teacher.checkpoint={tmp_path / "permuted.pth"}',
                                     f'model.teacher.class_mapping=[{mapping}]'])):
        ended = run('train.py', files.distilling, '--work-dir', tmp_path / work_dir, '--cfg-options',
                    f'model.teacher.config={teacher_config}', *options)
        assert ended.code == 0, ended.err
        logged.append({name: float(value) for name, value in re.findall(
            r'(coco/\w+) (-?[\d.]+)', re.search('Teacher: coco.*', ended.out)[0])})
    assert logged[0]['coco/bbox_mAP'] > 0.001
    assert logged[0] == logged[1]


def test_other_class_names_need_a_mapping(train, files, tmp_path):
    content = torch.load(files.weights, weights_only=False)
    content['meta']['dataset_meta']['classes'] = tuple('0132456789')
    torch.save(content, tmp_path / 'permuted.pth')
    train('from class 2', "['3', '2', '4']", "['2', '3', '4']", 'class_mapping',
          checkpoint=tmp_path / 'permuted.pth')
