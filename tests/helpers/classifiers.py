"""Small classifiers that take a step in milliseconds."""
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

CLASSES = 5
STUDENT = dict(type='ClsDataPreprocessor', mean=[120.0, 115.0, 100.0], std=[60.0, 58.0, 57.0], to_rgb=True)
TEACHER = dict(type='ClsDataPreprocessor', mean=[100.0, 110.0, 120.0], std=[50.0, 70.0, 60.0], to_rgb=False)


def classifier(size: int = 8, classes: int = CLASSES, depth: int = 18, **settings) -> ConfigDict:
    """Return the config of a small ResNet.

    Args:
        size: Base channels; a teacher's may differ from a student's.
        classes: Number of classes.
        depth: Of the ResNet.
        settings: Further settings of the classifier.
    """
    return ConfigDict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='ResNet', depth=depth, base_channels=size, stem_channels=size),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=8 * size,
                  loss=dict(type='CrossEntropyLoss')),
        data_preprocessor=dict(STUDENT), **settings)


def teacher_of(size: int = 16, **settings) -> ConfigDict:
    """Return a classifier with another normalization and channel order."""
    return ConfigDict(classifier(size, **settings), data_preprocessor=dict(TEACHER))


def deit(**settings) -> ConfigDict:
    """Return the config of a small vision transformer with a distillation token."""
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    return ConfigDict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='DistilledVisionTransformer', arch=arch, img_size=64, patch_size=16),
        head=dict(type='DeiTClsHead', num_classes=CLASSES, in_channels=16,
                  loss=dict(type='CrossEntropyLoss')),
        data_preprocessor=dict(STUDENT), **settings)


def distill(student, teacher, **methods) -> dict:
    """Return a ClassifierDistiller's config with a random teacher."""
    return dict(type='mmkd.ClassifierDistiller', student=student,
                teacher=dict(config=teacher, checkpoint='random'), methods=methods)


def distill_changed(folder: Path, change: Callable, classes: int = 3) -> ConfigDict:
    """Return a ClassifierDistiller's config whose teacher has a checkpoint with some tensors changed.

    Args:
        folder: Where to write the checkpoint.
        change: Called with the weights by name, to change them in place.
        classes: Number of classes.
    """
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(teacher_of(classes=classes))
    model.init_weights()
    weights = model.state_dict()
    change(weights)
    torch.save(dict(state_dict=weights), folder / 'teacher.pth')
    cfg = distill(classifier(classes=classes), teacher_of(classes=classes), kd=dict(type='mmkd.KD'))
    cfg['teacher']['checkpoint'] = str(folder / 'teacher.pth')
    cfg['student'].pop('data_preprocessor')  # a whole config has it at the top
    return ConfigDict(cfg)


def batch(model, number: int = 4, size: int = 64, seed: int = 0) -> dict:
    """Return a preprocessed batch of noise."""
    from mmpretrain.structures import DataSample
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = [DataSample(metainfo=dict(num_classes=CLASSES)).set_gt_label(index % CLASSES)
               for index in range(number)]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
