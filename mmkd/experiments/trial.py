"""Distilling networks that are built without a Runner and without data, to take a few steps with them."""
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..apis import is_distillation, prepare_config
from ..apis.config import model_config, teacher_configs
from ..cli import merge_options, read_config
from ..errors import MMKDError
from ..models.methods import TrainLabelsMethod
from ..models.spots import classification_heads, is_classifier, logit_layout


def load(path: str, cfg_options: dict | None, random_teacher: bool) -> Config:
    """Read and prepare a distilling config.

    Args:
        path: The config file.
        cfg_options: Config options by dotted keys.
        random_teacher: Whether the weights of the teacher and of the student's backbone are not loaded.

    Raises:
        MMKDError: If the config does not distill.
    """
    cfg = read_config(path)
    merge_options(cfg, cfg_options)
    if not is_distillation(cfg):
        raise MMKDError(f'{path!r} does not distill.')
    if random_teacher:
        for teacher in teacher_configs(cfg):
            teacher.checkpoint = 'random'
        if 'backbone' in cfg.model.student:
            cfg.model.student.backbone.init_cfg = None
    return prepare_config(cfg)


def build(cfg: Config, device: str) -> nn.Module:
    """Build and initialize the network of a config as MMEngine's Runner does, in train mode."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(model_config(cfg))
    model.init_weights()
    if hasattr(model, 'mmkd'):
        _set_train_labels(model)
    return model.to(device).train()


def random_batch(model: nn.Module, number: int, size: int) -> dict:
    """Return a batch as from a data loader: images of noise, with random objects or labels.

    Args:
        model: The network.
        number: Number of images.
        size: Height and width of the images in pixels.
    """
    if not is_classifier(model):
        heads = classification_heads(model)
        return demo_mm_inputs(number, [[3, size, size]] * number,
                              num_classes=heads[0].num_classes if heads else 1)
    from mmpretrain.structures import DataSample
    classes = logit_layout(model, 'student').num_classes
    labels = torch.randint(classes, (number, )).tolist()
    samples = [DataSample(metainfo=dict(num_classes=classes, sample_idx=index)).set_gt_label(label)
               for index, label in enumerate(labels)]
    return dict(inputs=torch.randint(256, (number, 3, size, size), dtype=torch.uint8), data_samples=samples)


def _set_train_labels(model: nn.Module) -> None:
    """Give methods that need the labels of the training set those of a set with two images per class."""
    for method in model.mmkd.methods.values():
        if isinstance(method, TrainLabelsMethod) and method.needs_train_labels:
            method.set_train_labels(list(range(logit_layout(model, 'student').num_classes)) * 2)
