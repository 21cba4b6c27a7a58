"""The table of all methods: what they are for, their papers, and the configs that show them."""
from dataclasses import dataclass

from . import presets, zoo
from .base import Method
from .crosskd import CrossKD
from .deit import DeiT
from .ld import LD
from .sakd import SAKD

TASKS = ('classifier', 'two-stage', 'dense')
"""The kinds of networks: classifiers, two-stage detectors and dense detectors."""


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


_ZOO_CONFIGS = dict(
    FitNet='configs/classification/fitnet/fitnet_resnet32x4_resnet8x4_cifar100.py',
    AT='configs/classification/at/at_resnet32x4_resnet8x4_cifar100.py',
    NST='configs/classification/nst/nst_resnet32x4_resnet8x4_cifar100.py',
    VID='configs/classification/vid/vid_resnet32x4_resnet8x4_cifar100.py',
    KDSVD='configs/classification/kdsvd/kdsvd_resnet32x4_resnet8x4_cifar100.py',
    AB='configs/classification/ab/ab_resnet32x4_resnet8x4_cifar100.py',
    FSP='configs/classification/fsp/fsp_resnet32x4_resnet8x4_cifar100.py',
    FT='configs/classification/ft/ft_resnet32x4_resnet8x4_cifar100.py',
    OFD='configs/classification/ofd/ofd_resnet32x4_resnet8x4_cifar100.py',
    ReviewKD='configs/detection/reviewkd/reviewkd_faster-rcnn_r101_r50_fpn_2x_coco.py',
    SP='configs/classification/sp/sp_resnet32x4_resnet8x4_cifar100.py',
    CC='configs/classification/cc/cc_resnet32x4_resnet8x4_cifar100.py',
    RKD='configs/classification/rkd/rkd_resnet32x4_resnet8x4_cifar100.py',
    PKT='configs/classification/pkt/pkt_resnet32x4_resnet8x4_cifar100.py',
    CRD='configs/classification/crd/crd_resnet32x4_resnet8x4_cifar100.py',
    PKD='configs/detection/pkd/pkd_faster-rcnn_r101_r50_fpn_2x_coco.py',
    CWD='configs/detection/cwd/cwd_retinanet_r101_r50_fpn_2x_coco.py',
    FGD='configs/detection/fgd/fgd_retinanet_r101_r50_fpn_2x_coco.py',
    MGD='configs/detection/mgd/mgd_retinanet_r101_r50_fpn_2x_coco.py',
    DKD='configs/classification/dkd/dkd_resnet32x4_resnet8x4_cifar100.py',
    DIST='configs/classification/dist/dist_resnet32x4_resnet8x4_cifar100.py')

_ENTRIES = (
    MethodEntry(presets.KD, TASKS, 'Knowledge distillation (Hinton et al., 2015)',
                'configs/detection/kd/kd_faster-rcnn_r101_r50_fpn_2x_coco.py'),
    MethodEntry(presets.KDTuned, TASKS, 'KD†, a tuned teacher (Li and Jin, NeurIPS 2022)',
                'configs/detection/kdtuned/kdtuned_faster-rcnn_r101_r50_fpn_2x_coco.py'),
    MethodEntry(presets.DML, TASKS, 'Deep mutual learning (Zhang et al., CVPR 2018)',
                'configs/detection/dml/dml_faster-rcnn_r101_r50_fpn_2x_coco.py'),
    MethodEntry(presets.SHAKE, TASKS, 'Shadow knowledge distillation (Li and Jin, NeurIPS 2022)',
                'configs/detection/shake/shake_faster-rcnn_r101_r50_fpn_2x_coco.py'),
    MethodEntry(presets.SOKD, TASKS, 'Semi-online knowledge distillation (Liu et al., BMVC 2021)',
                'configs/classification/sokd/sokd_resnet34_resnet18_imagenet.py'),
    MethodEntry(SAKD, ('classifier', ), 'Spot-adaptive distillation (Song et al., IEEE TIP 2022)',
                'configs/classification/sakd/sakd_at_resnet32x4_resnet8x4_cifar100.py'),
    MethodEntry(DeiT, ('classifier', ), 'Data-efficient image transformers (Touvron et al., ICML 2021)',
                'configs/classification/deit/deit_regnety160_deit-tiny_imagenet.py'),
    MethodEntry(CrossKD, ('dense', ), 'Cross-head distillation (Wang et al., CVPR 2024)',
                'configs/detection/crosskd/crosskd_gfl_r101_r50_fpn_1x_coco.py'),
    MethodEntry(LD, ('dense', ), 'Localization distillation (Zheng et al., CVPR 2022)',
                'configs/detection/ld/ld_gfl_r101_r50_fpn_1x_coco.py'),
    *(MethodEntry(entry.cls, entry.task, entry.paper, _ZOO_CONFIGS.get(name))
      for name, entry in zoo.ZOO.items()))

METHODS: dict[str, MethodEntry] = {entry.name: entry for entry in _ENTRIES}
"""All methods by name."""
