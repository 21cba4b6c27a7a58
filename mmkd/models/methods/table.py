"""The table of all methods: what they are for, their papers, and the configs that show them."""
from dataclasses import dataclass

from . import presets, zoo
from .base import Method
from .bckd import BCKD
from .box_distill import BoxDistill
from .crosskd import CrossKD
from .deit import DeiT
from .ld import LD
from .prediction_kd import PredictionKD
from .query_boxes import QueryBoxes
from .sakd import SAKD

TASKS = ('classifier', 'two-stage', 'dense', 'query-based')
"""The kinds of networks: classifiers, and two-stage, dense and query-based detectors."""


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table.

    Args:
        cls: The class of the method.
        task: The kinds of networks that it is for, of :data:`TASKS`. A feature method without a usual spot in
            such a network still works where its ``spot`` is set.
        paper: Title, authors and venue.
        config: The shipped config that shows it, relative to the repository; ``None`` if there is none.
    """
    cls: type[Method]
    task: tuple[str, ...]
    paper: str
    config: str | None = None

    @property
    def name(self) -> str:
        """The paper's acronym, by which configs and ``tools/train.py --distill`` name the method."""
        return self.cls.__name__


_CIFAR = ('classification', 'resnet32x4_resnet8x4_cifar100')
_FASTER_RCNN = ('detection', 'faster-rcnn_r101_r50_fpn_2x_coco')
_RETINANET = ('detection', 'retinanet_r101_r50_fpn_2x_coco')
_GFL = ('detection', 'gfl_r101_r50_fpn_1x_coco')

_CONFIGS = dict(
    KD=_FASTER_RCNN, KDTuned=_FASTER_RCNN, DML=_FASTER_RCNN, SHAKE=_FASTER_RCNN, CrossKD=_GFL, LD=_GFL,
    BCKD=_GFL, BoxDistill=_FASTER_RCNN,
    SOKD=('classification', 'resnet34_resnet18_imagenet'), SAKD=('classification', f'at_{_CIFAR[1]}'),
    DeiT=('classification', 'regnety160_deit-tiny_imagenet'), HardLabel=None, QueryBoxes=None,
    PredictionKD=('detection', 'dino_faster-rcnn_r50_fpn_2x_coco'),
    ReviewKD=_FASTER_RCNN, PKD=_FASTER_RCNN, CWD=_RETINANET, FGD=_RETINANET, MGD=_RETINANET)
"""Task and networks of the config that shows a method; all others are shown by :data:`_CIFAR`."""


def _entry(cls: type[Method], task: tuple[str, ...], paper: str) -> MethodEntry:
    shown = _CONFIGS.get(cls.__name__, _CIFAR)
    if shown is None:
        return MethodEntry(cls, task, paper)
    name = cls.__name__.lower()
    return MethodEntry(cls, task, paper, f'configs/{shown[0]}/{name}/{name}_{shown[1]}.py')


_ENTRIES = (
    _entry(presets.KD, TASKS, 'Knowledge distillation (Hinton et al., 2015)'),
    _entry(presets.LSKD, ('classifier', 'two-stage'), 'Logit standardization (Sun et al., CVPR 2024)'),
    _entry(presets.KDTuned, TASKS, 'KD†, a tuned teacher (Li and Jin, NeurIPS 2022)'),
    _entry(presets.DML, TASKS, 'Deep mutual learning (Zhang et al., CVPR 2018)'),
    _entry(presets.SHAKE, TASKS, 'Shadow knowledge distillation (Li and Jin, NeurIPS 2022)'),
    _entry(presets.SOKD, TASKS, 'Semi-online knowledge distillation (Liu et al., BMVC 2021)'),
    _entry(SAKD, TASKS, 'Spot-adaptive distillation (Song et al., IEEE TIP 2022)'),
    _entry(DeiT, ('classifier', ), 'Data-efficient image transformers (Touvron et al., ICML 2021)'),
    _entry(CrossKD, ('dense', ), 'Cross-head distillation (Wang et al., CVPR 2024)'),
    _entry(PredictionKD, ('two-stage', 'dense', 'query-based'),
           'Detections as soft labels, after data distillation (Radosavovic et al., CVPR 2018)'),
    _entry(LD, ('dense', ), 'Localization distillation (Zheng et al., CVPR 2022)'),
    _entry(QueryBoxes, ('query-based', ), 'Boxes of DETRDistill (Chang et al., ICCV 2023)'),
    _entry(BCKD, ('dense', ), 'Scores and boxes of dense detectors (Yang et al., ICCV 2023)'),
    _entry(BoxDistill, ('two-stage', ), 'Boxes of two-stage detectors (after Chen et al., NeurIPS 2017)'),
    *(_entry(entry.cls, entry.task, entry.paper) for entry in zoo.ZOO.values()))

CAUTIONS: dict[tuple[str, str], str] = {
    ('AT', 'classifier'): "its published weight outweighed the labels; balance='gradient' repaired it",
    ('CRD', 'classifier'): 'its published weight outweighed the labels in a short training',
    ('FT', 'classifier'): "its first phase took a third of a short training's epochs"}
"""Why the student was worse than without a teacher in docs/benchmarks/, by method and kind of network."""

METHODS: dict[str, MethodEntry] = {entry.name: entry for entry in _ENTRIES}
"""All methods by name."""
