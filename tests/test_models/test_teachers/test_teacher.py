import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope

from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError
from mmkd.models.teachers import Teacher
from mmkd.models.teachers.normalization import BatchConverter
from tests.helpers import classifiers
from tests.helpers.tiny import build, distil, tiny_config

NORMALISATIONS = {
    'same': dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
                 pad_size_divisor=32),
    'caffe, BGR': dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False,
                       pad_size_divisor=32),
    'other divisor': dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=True,
                          pad_size_divisor=128),
    'smaller divisor': dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=False,
                            pad_size_divisor=1),
}


def images():
    """Two images of different size, as a pipeline gives them."""
    from mmdet.structures import DetDataSample
    rng = np.random.default_rng(0)
    data = []
    for height, width in ((96, 120), (70, 90)):
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), scale_factor=(1.0, 1.0),
                                             ori_shape=(height, width)))
        pixels = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        data.append(dict(inputs=pixels, data_samples=sample))
    return pseudo_collate(data)


@pytest.mark.parametrize('of_teacher', NORMALISATIONS)
@pytest.mark.parametrize('of_student', NORMALISATIONS)
def test_converted_batch_equals_the_teachers_own_preprocessing(of_student, of_teacher):
    student, teacher = (MODELS.build(dict(type='mmdet.DetDataPreprocessor', **NORMALISATIONS[name]))
                        for name in (of_student, of_teacher))
    data = images()
    mine = student(copy.deepcopy(data))
    expected = teacher(copy.deepcopy(data))['inputs']
    converted = BatchConverter(student, teacher)(mine['inputs'],
                                                 [sample.img_shape for sample in mine['data_samples']])
    torch.testing.assert_close(converted, expected, rtol=1e-5, atol=1e-4)
    if of_student == of_teacher:
        assert converted is mine['inputs']


@pytest.mark.parametrize('normalization', ['same', 'caffe, BGR', 'other divisor'])
def test_logits_in_training_equal_the_stock_teachers(teacher_config, teacher_checkpoint, batch,
                                                     normalization):
    """The stock teacher runs on the image with its own preprocessor, and judges the same boxes."""
    cfg = Config.fromfile(teacher_config)
    cfg.model.data_preprocessor = dict(type='DetDataPreprocessor', **NORMALISATIONS[normalization])
    teacher_cfg = dict(cfg.model)
    model = build(distil(tiny_config().model, copy.deepcopy(teacher_cfg), teacher_checkpoint))

    student_batch = model.data_preprocessor(copy.deepcopy(batch), True)
    with model.mmkd.recorder(model) as recorder:
        model.loss(student_batch['inputs'], student_batch['data_samples'])
    rois = recorder['rois'][0]
    seen = model.mmkd.teacher(
        student_batch['inputs'], student_batch['data_samples'], [rois])['cls_outputs'][0][0]

    stock = MODELS.build(copy.deepcopy(cfg.model))
    stock.load_state_dict(load_checkpoint(teacher_checkpoint)['state_dict'])
    stock.eval()
    with torch.no_grad():
        stock_batch = stock.data_preprocessor(copy.deepcopy(batch), False)
        features = stock.extract_feat(stock_batch['inputs'])
        expected = stock.roi_head._bbox_forward(features, rois)['cls_score']
    assert rois.shape == (4 * model.train_cfg.rcnn.sampler.num, 5)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('whole', [False, True], ids=['model', 'config'])
def test_a_teacher_of_unknown_normalization_is_refused(whole):
    """MMPretrain's networks have their data preprocessor at the top of a config, not in the model."""
    pytest.importorskip('mmpretrain')
    cfg = classifiers.teacher_of()
    preprocessor = cfg.pop('data_preprocessor')
    cfg = dict(model=cfg, default_scope='mmpretrain') if whole else cfg

    def distilling(student=None):
        student = student or classifiers.classifier()
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return build(classifiers.distil(student, cfg, kd=dict(type='mmkd.KD')))

    with pytest.raises(MMKDError, match='no data_preprocessor to tell .* with its mean and std'):
        distilling()
    student = classifiers.classifier()
    student.data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor')
    images = torch.rand(2, 3, 32, 32)
    assert distilling(student).mmkd.teacher.convert(images, [None] * 2) is images
    cfg['data_preprocessor'] = dict(preprocessor)
    assert not torch.equal(distilling().mmkd.teacher.convert(images, [None] * 2), images)
    for meant in (dict(type='mmpretrain.ClsDataPreprocessor'), dict(to_rgb=True)):  # as YOLOX has it
        cfg['data_preprocessor'] = meant
        distilling()


def test_teacher_stays_in_eval_and_out_of_the_module_tree(teacher_config, teacher_checkpoint):
    model = build(distil(tiny_config().model, teacher_config, teacher_checkpoint))
    teacher = model.mmkd.teacher
    model.train()
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    of_teacher = {id(parameter) for parameter in teacher.model.parameters()}
    assert not of_teacher & {id(parameter) for parameter in model.parameters()}
    assert not any('teacher' in name for name in model.state_dict())
    assert copy.deepcopy(model).mmkd.teacher is teacher


def test_teacher_follows_the_student(teacher_config):
    model = build(distil(tiny_config().model, teacher_config))
    model.to(torch.float64)
    assert next(model.mmkd.teacher.model.parameters()).dtype == torch.float64
    model.to('meta')
    assert next(model.mmkd.teacher.model.parameters()).device.type == 'meta'


def watch_calls(model) -> list[str]:
    """Return a list to which the name of every module is added when it runs."""
    called = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    return called


def test_only_what_is_asked_for_is_run(teacher_config, batch):
    kinds = dict(features=dict(type='mmkd.PKD'), logits=dict(type='mmkd.KD'))
    for kind, method in kinds.items():
        model = build(distil(tiny_config().model, teacher_config, m=method))
        called = []
        for name, module in model.mmkd.teacher.model.named_modules():
            module.register_forward_hook(lambda *_, name=name, called=called: called.append(name))
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        model.loss(data['inputs'], data['data_samples'])
        assert 'neck' in called
        assert not any(name.startswith('rpn_head') for name in called)
        assert any(name.startswith('roi_head') for name in called) == (kind == 'logits')


def test_class_mapping_reorders_the_teachers_logits(teacher_config):
    student_cfg = tiny_config().model
    student_cfg.roi_head.bbox_head.num_classes = 3
    cfg = distil(student_cfg, teacher_config)
    with pytest.raises(MMKDError, match='knows 10 classes and the student 3'):
        MODELS.build(copy.deepcopy(cfg))
    cfg['teacher']['class_mapping'] = [7, 0, 4]
    model = build(cfg)
    data = model.data_preprocessor(images(), True)
    rois = torch.tensor([[0.0, 5.0, 5.0, 40.0, 40.0], [1.0, 10.0, 8.0, 60.0, 50.0]])
    teacher = model.mmkd.teacher
    mapped = teacher(data['inputs'], data['data_samples'], [rois])['cls_outputs'][0][0]
    teacher.class_indices = None
    plain = teacher(data['inputs'], data['data_samples'], [rois])['cls_outputs'][0][0]
    assert torch.equal(mapped, plain[:, [7, 0, 4, 10]])


def test_a_distilled_students_checkpoint_can_teach(teacher_config, tmp_path):
    """Keys of distillation (`mmkd.*`) are dropped when a student becomes a teacher."""
    model = build(distil(tiny_config().model, teacher_config))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'student.pth')
    teacher = Teacher(dict(tiny_config().model), str(tmp_path / 'student.pth'))
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_batch_statistics_on_request(teacher_config, batch):
    """Batch norm as in training, the running statistics untouched, and eval mode before and after."""
    spot = 'backbone.layer2.0.downsample.1'  # no ReLU works in place on what this norm gives
    seen, running = {}, {}
    for kind in ('eval', 'train'):
        model = build(distil(tiny_config().model, teacher_config))
        teacher = model.mmkd.teacher
        teacher.batch_norm = kind
        torch.manual_seed(0)
        for module in teacher.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_()
        norm = teacher.model.get_submodule(spot)
        before = copy.deepcopy(norm.state_dict())
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        teacher.add_spots([spot])
        seen[kind], = teacher(data['inputs'], data['data_samples'], spots=[spot])[spot]
        running[kind] = all(torch.equal(before[key], norm.state_dict()[key])
                            for key in ('running_mean', 'running_var'))
        assert not any(module.training for module in teacher.model.modules())
        assert norm.momentum == 0.1
    assert running == dict(eval=True, train=True)
    centered = (seen['train'] - norm.bias.detach()[:, None, None]).mean(dim=(0, 2, 3))
    torch.testing.assert_close(centered, torch.zeros_like(centered), rtol=0, atol=1e-4)
    assert not torch.allclose(seen['eval'], seen['train'])


def test_batch_norm_is_one_of_two():
    with pytest.raises(MMKDError, match="'eval' or 'train', not 'both'"):
        Teacher('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'random', batch_norm='both')
