"""PredictionKD: the teacher's detections as ground truth, between any two detectors."""
import copy
import random

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.methods.prediction_kd import chosen_objects
from mmkd.models.teachers.detecting import detect
from tests.helpers.families import CLASSES, detector
from tests.helpers.queries import query_detector
from tests.helpers.tiny import build, distill
from tests.helpers.two_processes import run_in_two_processes, step_twice

HARD = dict(type='mmkd.PredictionKD', targets='hard', score_threshold=0.0)


def config(family: str, size: int = 8, **settings):
    query_based = family in ('detr', 'conditional', 'dab', 'deformable', 'dino', 'ddq')
    return (query_detector if query_based else detector)(family, size, **settings)


def make(student: str, teacher: str, seed: int = 0, **method):
    method = {**HARD, **method}
    model = build(distill(config(student), config(teacher, 16), prediction=method), seed)
    limit(model.mmkd.teacher.model)
    return model


def limit(teacher) -> None:
    """Keep the five best detections of every image: a random teacher is sure of nothing."""
    head = getattr(teacher, 'roi_head', None) or teacher.bbox_head
    head.test_cfg.update(score_thr=0.0, max_per_img=5)


def batch(model, seed: int = 0, with_mask: bool = False) -> dict:
    torch.manual_seed(seed)
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 100, 120]], num_classes=CLASSES, num_items=[2, 3],
                          with_mask=with_mask)
    return model.data_preprocessor(data, True)


def stock(family: str, model):
    """Return the stock detector with the student's weights, in train mode."""
    plain = MODELS.build(config(family))
    weights = student_state_dict(dict(state_dict=model.state_dict()))
    missing, unexpected = plain.load_state_dict(weights, strict=False)
    assert not missing
    assert all(name.startswith('decoder.aux_reg_branches.') for name in unexpected)  # DDQ shares them later
    return plain.train()


# Objects


def detections(boxes, scores, labels) -> InstanceData:
    return InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                        scores=torch.tensor(scores), labels=torch.tensor(labels, dtype=torch.long))


OBJECTS = detections([[0, 0, 10, 10], [0, 0, 10, 9], [40, 40, 60, 60], [0, 0, 10, 8], [40, 40, 60, 59]],
                     [0.5, 0.3, 0.9, 0.1, 0.6], [2, 0, 1, 2, 0])


def test_hard_objects_are_the_best_detections():
    indices, labels = chosen_objects(OBJECTS, soft=False)
    assert indices.tolist() == [2, 0]
    assert labels.tolist() == [1, 2]


def test_soft_objects_appear_by_their_class_probabilities():
    torch.manual_seed(0)
    draws = [dict(zip(*(part.tolist() for part in chosen_objects(OBJECTS, soft=True)), strict=True))
             for _ in range(1000)]

    def share(index, label):
        return sum(draw.get(index) == label for draw in draws) / len(draws)

    # The first object: 0.5 for class 2 (not 0.6), 0.3 for class 0, absent otherwise.
    assert share(0, 2) == pytest.approx(0.5, abs=0.05)
    assert share(0, 0) == pytest.approx(0.3, abs=0.05)
    # The second object is always present: 0.9 and 0.6 are more than 1 together.
    assert share(2, 1) == pytest.approx(0.6, abs=0.05)
    assert share(2, 0) == pytest.approx(0.4, abs=0.05)
    assert all(set(draw) <= {0, 2} for draw in draws)


@pytest.mark.parametrize('soft', [True, False])
def test_without_detections_there_are_no_objects(soft):
    indices, labels = chosen_objects(detections([], [], []), soft)
    assert indices.shape == labels.shape == (0, )
    assert labels.dtype == torch.long


# The teacher


@pytest.mark.parametrize('family', ['retinanet', 'faster_rcnn', 'dino'])
def test_detections_are_those_of_the_stock_teacher_with_its_preprocessing(family):
    teacher_cfg = config(family, 16)
    teacher_cfg.data_preprocessor.update(mean=[100.0, 110.0, 120.0], std=[57.0, 58.0, 59.0], bgr_to_rgb=False,
                                         pad_size_divisor=64)
    model = build(distill(config('retinanet'), teacher_cfg, prediction=HARD))
    teacher = model.mmkd.teacher
    limit(teacher.model)
    torch.manual_seed(3)
    data = demo_mm_inputs(2, [[3, 120, 96], [3, 70, 100]], num_classes=CLASSES)
    for sample in data['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.5, 2.0), ori_shape=(33, 44)))  # before some augmentation
    inputs = model.data_preprocessor(copy.deepcopy(data), True)
    teacher.add_spots(['features'])
    (features, ) = teacher(inputs['inputs'], inputs['data_samples'], spots=['features'])['features']
    got = detect(teacher, inputs['inputs'], inputs['data_samples'], features)

    expected = teacher.model.data_preprocessor(data, False)
    with torch.no_grad():
        expected = teacher.model.predict(expected['inputs'], expected['data_samples'], rescale=False)
    assert any(len(instances) for instances in got)
    for instances, sample in zip(got, expected, strict=True):
        torch.testing.assert_close(instances.bboxes, sample.pred_instances.bboxes, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(instances.scores, sample.pred_instances.scores, rtol=1e-3, atol=1e-4)
        assert torch.equal(instances.labels, sample.pred_instances.labels)


# The student


@pytest.mark.parametrize('student', ['retinanet', 'deformable'])
def test_the_loss_is_the_students_own_loss_on_the_detections(student):
    model = make(student, 'retinanet', weight=0.5)
    data = batch(model)
    plain = stock(student, model)
    for module in [*plain.modules(), *model.modules()]:
        if isinstance(module, (torch.nn.Dropout, torch.nn.MultiheadAttention)):
            module.eval()
    losses = model(**data, mode='loss')
    teacher = model.mmkd.teacher
    (features, ) = teacher(data['inputs'], data['data_samples'], spots=['features'])['features']
    labeled = copy.deepcopy(data)
    detected = detect(teacher, data['inputs'], data['data_samples'], features)
    for sample, instances in zip(labeled['data_samples'], detected, strict=True):
        indices, labels = chosen_objects(instances, soft=False)
        sample.gt_instances = InstanceData(bboxes=instances.bboxes[indices], labels=labels)
    total, _ = plain.parse_losses(plain(**labeled, mode='loss'))
    torch.testing.assert_close(losses['prediction.loss_prediction'], 0.5 * total)
    assert losses['prediction.num_objects'] > 0


@pytest.mark.parametrize('student', ['faster_rcnn', 'rtmdet', 'dino'])
def test_the_students_own_step_is_unchanged(student):
    """The losses to the last bit, the running statistics (RTMDet's head has some), the random numbers."""
    model = make(student, 'retinanet', targets='soft')
    plain = stock(student, model)
    data = batch(model)
    states = []
    for network in (plain, model):
        torch.manual_seed(5)
        losses = network(**copy.deepcopy(data), mode='loss')
        states.append((losses, student_state_dict(dict(state_dict=network.state_dict())), torch.rand(3)))
    (expected, expected_state, expected_draw), (got, got_state, draw) = states
    for name, loss in expected.items():
        torch.testing.assert_close(got[name], loss, rtol=0, atol=0)
    for name, value in expected_state.items():
        assert torch.equal(got_state[name], value), name
    assert torch.equal(draw, expected_draw)
    total, _ = model.parse_losses(got)
    total.backward()


def test_soft_targets_differ_from_step_to_step_and_reproducibly():
    model = make('retinanet', 'retinanet', targets='soft')
    data = batch(model)
    values = []
    for seed in (0, 1, 2, 0):
        torch.manual_seed(seed)
        random.seed(seed)
        values.append(model(**copy.deepcopy(data), mode='loss')['prediction.loss_prediction'].item())
    assert values[0] == values[3]
    assert len(set(values)) > 1


PAIRS = [('faster_rcnn', 'retinanet'), ('cascade_rcnn', 'fcos'), ('retinanet', 'faster_rcnn'),
         ('fcos', 'dino'), ('gfl', 'deformable'), ('rtmdet', 'yolox'), ('yolox', 'retinanet'),
         ('mask_rcnn', 'mask_rcnn'),
         ('conditional', 'atss'), ('dab', 'gfl'), ('dino', 'retinanet'), ('ddq', 'faster_rcnn'),
         ('faster_rcnn', 'detr')]


@pytest.mark.slow
@pytest.mark.parametrize(('student', 'teacher'), PAIRS)
def test_any_pair_trains(student, teacher):
    model = make(student, teacher)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for step in range(2):
        total, log = model.parse_losses(
            model(**batch(model, step, with_mask=student == 'mask_rcnn'), mode='loss'))
        assert all(torch.isfinite(value) for value in log.values()), log
        assert log['prediction.loss_prediction'] > 0 and log['prediction.num_objects'] > 0
        optimizer.zero_grad()
        total.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())
        optimizer.step()
    stock(student, model)


# Labels


def test_images_without_labels():
    """With detections alone, the student learns as much as from the same objects as labels."""
    model = make('retinanet', 'faster_rcnn', student_task=0.0)
    data = batch(model)
    with_labels = model(**copy.deepcopy(data), mode='loss')
    for sample in data['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    without = model(**data, mode='loss')
    name = 'prediction.loss_prediction'
    torch.testing.assert_close(without[name], with_labels[name], rtol=0, atol=0)
    assert all(value == 0 for name, values in without.items() if name.startswith('loss') for value in values)


def test_labels_are_added_and_replace_detections_of_the_same_object():
    model = make('retinanet', 'faster_rcnn', add_labels=True)
    method = model.mmkd.methods['prediction']
    (sample, _) = batch(model)['data_samples']
    boxes = sample.gt_instances.bboxes
    detected = InstanceData(bboxes=torch.cat([boxes[:1], boxes.new_tensor([[1.0, 1, 9, 9]])]),
                            scores=boxes.new_tensor([0.9, 0.8]), labels=boxes.new_tensor([0, 2]).long())
    relabeled = method._sample(sample, detected).gt_instances
    assert torch.equal(relabeled.bboxes, torch.cat([boxes, detected.bboxes[1:]]))
    assert relabeled.labels.tolist() == [*sample.gt_instances.labels.tolist(), 2]
    assert len(sample.gt_instances) == len(boxes)  # the labels of the batch are as they were


def test_weak_and_empty_detections_do_not_count():
    method = make('retinanet', 'retinanet', score_threshold=0.4).mmkd.methods['prediction']
    (sample, _) = batch(make('retinanet', 'retinanet'))['data_samples']
    boxes = [[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 50.5, 70]]
    detected = detections(boxes, [0.39, 0.41, 0.9], [0, 1, 2])
    assert method._sample(sample, detected).gt_instances.labels.tolist() == [1]


# Errors


def test_other_class_lists_need_a_mapping():
    with pytest.raises(MMKDError, match='The teacher has 5 classes and the student 3; set teacher.class_map'):
        build(distill(config('retinanet'), config('faster_rcnn', 16, classes=5), prediction=HARD))
    cfg = distill(config('retinanet'), config('faster_rcnn', 16, classes=5), prediction=HARD)
    cfg['teacher']['class_mapping'] = [4, 0, 2]
    model = build(cfg)
    limit(model.mmkd.teacher.model)
    losses = model(**batch(model), mode='loss')
    assert torch.isfinite(losses['prediction.loss_prediction'])


def test_a_student_of_masks_needs_a_teacher_of_masks():
    with pytest.raises(MMKDError, match='learns masks, and the teacher RetinaNet does not predict any'):
        make('mask_rcnn', 'retinanet')


# Processes


def worker(rank: int, folder: str) -> None:
    init_default_scope('mmdet')
    model = make('deformable', 'retinanet', targets='soft')
    step_twice(model, batch, 'prediction', folder, rank)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tmp_path):
    run_in_two_processes(worker, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


# With what others offer


def test_mixed_precision():
    model = make('retinanet', 'dino')
    data = batch(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        total, log = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert torch.isfinite(total) and log['prediction.num_objects'] > 0


def test_balance():
    model = make('faster_rcnn', 'retinanet', balance='gradient', share=0.5)
    losses = model(**batch(model), mode='loss')
    balance = model.mmkd.gradient_balance
    assert losses['prediction.loss_prediction'] > 0
    assert balance.ratio('prediction', model.mmkd.methods['prediction']) == pytest.approx(0.5, rel=1e-3)


def test_beside_features_of_the_same_teacher():
    """The teacher's backbone and neck run once for both methods."""
    methods = dict(prediction=HARD, pkd=dict(type='mmkd.PKD', spot='features'))
    model = build(distill(config('retinanet'), config('faster_rcnn', 16), **methods))
    limit(model.mmkd.teacher.model)
    data = batch(model)
    model(**data, mode='loss')  # the first batch also tries the teacher's options
    calls = []
    model.mmkd.teacher.model.backbone.conv1.register_forward_hook(lambda *_: calls.append(1))
    losses = model(**data, mode='loss')
    assert len(calls) == 1
    assert losses['prediction.loss_prediction'] > 0 and losses['pkd.loss_feature'] > 0
