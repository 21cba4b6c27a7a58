"""What is taught: the papers' names, as a table of settings of FeatureDistill and LogitDistill."""
from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import MMKDError
from ...registry import MODELS
from .base import Method
from .feature_distill import FeatureDistill
from .logit_distill import LogitDistill

PROTOCOLS = dict(
    crd=dict(FitNet=100.0, AT=1000.0, SP=3000.0, CC=0.02, VID=1.0, RKD=1.0, PKT=30000.0, AB=0.0, FT=200.0,
             FSP=0.0, NST=50.0, CRD=0.8, KDSVD=1.0),
    sakd=dict(FitNet=1.0, AT=1000.0, SP=3000.0, CC=0.02, VID=1.0, RKD=1.0, PKT=30000.0, AB=0.0, FT=200.0,
              FSP=0.0, NST=50.0, CRD=0.8, KDSVD=1.0))
"""The weights of two published comparisons of classifiers, by the name of the method.

``crd`` is that of Tian et al. (ICLR 2020), where a method of features stands alone beside the task loss;
``sakd`` is that of SAKD (IEEE TIP 2022), where ``KD`` with weight 1 stands beside every method.
"""


@dataclass(frozen=True)
class Entry:
    """A method of the zoo.

    Args:
        name: The paper's own acronym.
        paper: Title, authors and venue.
        loss: Its loss.
        classifier: Where features of classifiers are compared; ``None``: not for classifiers. ``'logits'``
            for losses of logits.
        detector: The same for detectors.
        trains: Whether it has trainable parts of its own, besides connectors where shapes differ.
        weight: Of the loss; ``None``: the protocol's.
        settings: Others of the loss, of FeatureDistill or LogitDistill.
    """
    name: str
    paper: str
    loss: str
    classifier: str | tuple[str, ...] | None
    detector: str | None
    trains: bool = False
    weight: float | None = None
    settings: dict = field(default_factory=dict)

    @property
    def of_logits(self) -> bool:
        """Whether it compares logits."""
        return self.classifier == 'logits'

    def build(self, weight: float | None = None, protocol: str = 'crd', **settings) -> Method:
        """Build the method.

        Args:
            weight: Of the loss; by default as published.
            protocol: Which published weight, see :data:`PROTOCOLS`.
            **settings: Of the loss, of :class:`FeatureDistill` or :class:`LogitDistill`.
        """
        if protocol not in PROTOCOLS:
            raise MMKDError(f'`protocol` must be one of {sorted(PROTOCOLS)}, not {protocol!r}.')
        if weight is None:
            weight = PROTOCOLS[protocol][self.name] if self.weight is None else self.weight
        settings = {**self.settings, **settings}
        if self.of_logits:
            own = _taken(settings, 'student_task', 'standardize')
            return LogitDistill(dict(type=f'mmkd.{self.loss}', **settings), weight, **own)
        own = _taken(settings, 'spot', 'teacher_spot', 'connector', 'first_phase_epochs')
        own.setdefault('spot', dict(classifier=self.classifier, detector=self.detector))
        return FeatureDistill(dict(type=f'mmkd.{self.loss}', weight=weight, **settings), **own)


def _taken(settings: dict, *names: str) -> dict:
    return {name: settings.pop(name) for name in names if name in settings}


_WHERE_NEEDED = dict(type='mmkd.ConvConnector', relu=False, skip_same=True)
_ALIGNMENT = dict(type='mmkd.ConvConnector', kernel_size=1, norm=False, relu=False, skip_same=True)
_CONV_BN = dict(type='mmkd.ConvConnector', kernel_size=1, relu=False, pool=True)

ZOO = (
    Entry('FitNet', 'FitNets: hints for thin deep nets (Romero et al., ICLR 2015)', 'FitNetLoss', 'stage2',
          'neck', trains=True, settings=dict(connector=dict(type='mmkd.ConvConnector'))),
    Entry('AT', 'Attention transfer (Zagoruyko and Komodakis, ICLR 2017)', 'ATLoss', 'stages', 'neck'),
    Entry('NST', 'Neuron selectivity transfer (Huang and Wang, 2017)', 'NSTLoss', 'stages', 'neck'),
    Entry('VID', 'Variational information distillation (Ahn et al., CVPR 2019)', 'VIDLoss', 'stages', 'neck',
          trains=True),
    Entry('KDSVD', 'Knowledge distillation by singular value decomposition (Lee et al., ECCV 2018)',
          'KDSVDLoss', 'stages', None, settings=dict(connector=_WHERE_NEEDED)),
    Entry('AB', 'Activation boundaries (Heo et al., AAAI 2019)', 'ABLoss', 'preactivations', None,
          trains=True, settings=dict(first_phase_epochs=30, connector=_CONV_BN)),
    Entry('FSP', 'Flow of the solution procedure (Yim et al., CVPR 2017)', 'FSPLoss', 'stages', None,
          settings=dict(first_phase_epochs=30, connector=_WHERE_NEEDED)),
    Entry('FT', 'Factor transfer (Kim et al., NeurIPS 2018)', 'FTLoss', 'last_stage', 'neck',
          trains=True, settings=dict(first_phase_epochs=30)),
    # 1/1000 is the authors' on CIFAR-100; 1/10000 on ImageNet.
    Entry('OFD', 'Overhaul of feature distillation (Heo et al., ICCV 2019)', 'OFDLoss', 'preactivations',
          None, trains=True, weight=1e-3, settings=dict(connector=_CONV_BN)),
    Entry('ReviewKD', 'Knowledge review (Chen et al., CVPR 2021)', 'ReviewKDLoss', ('stages', 'features'),
          'neck', trains=True, weight=1.0, settings=dict(mid_channels=None)),
    Entry('SP', 'Similarity preserving (Tung and Mori, ICCV 2019)', 'SPLoss', 'last_stage', 'neck'),
    Entry('CC', 'Correlation congruence (Peng et al., ICCV 2019)', 'CCLoss', 'features', None, trains=True),
    Entry('RKD', 'Relational knowledge distillation (Park et al., CVPR 2019)', 'RKDLoss', 'features', None),
    Entry('PKT', 'Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)', 'PKTLoss', 'features',
          None),
    Entry('CRD', 'Contrastive representation distillation (Tian et al., ICLR 2020)', 'CRDLoss', 'features',
          None, trains=True),
    Entry('PKD', 'Pearson correlation of features (Cao et al., NeurIPS 2022)', 'PKDLoss', 'last_stage',
          'neck', weight=6.0, settings=dict(connector=_WHERE_NEEDED)),
    # MMRazor's weight on the levels of an FPN, at temperature 1.
    Entry('CWD', 'Channel-wise distillation (Shu et al., ICCV 2021)', 'CWDLoss', 'last_stage', 'neck',
          weight=10.0, settings=dict(connector=_WHERE_NEEDED)),
    Entry('FGD', 'Focal and global distillation (Yang et al., CVPR 2022)', 'FGDLoss', None, 'neck',
          trains=True, weight=1.0, settings=dict(connector=_ALIGNMENT)),
    Entry('MGD', 'Masked generative distillation (Yang et al., ECCV 2022)', 'MGDLoss', 'last_stage', 'neck',
          trains=True, weight=2e-5, settings=dict(connector=_ALIGNMENT)),
    Entry('DKD', 'Decoupled knowledge distillation (Zhao et al., CVPR 2022)', 'DKDLoss', 'logits', 'logits',
          weight=1.0),
    Entry('DIST', 'Distillation from a stronger teacher (Huang et al., NeurIPS 2022)', 'DISTLoss', 'logits',
          'logits', weight=1.0),
    Entry('HardLabel', "The teacher's likeliest class as a second label (Touvron et al., ICML 2021)",
          'HardLabelLoss', 'logits', 'logits', weight=1.0),
)
"""All methods that are a loss at a place; how they are built, see :meth:`Entry.build`."""


def _preset(entry: Entry) -> Callable[..., Method]:
    def preset(**settings) -> Method:
        return entry.build(**settings)

    preset.__name__, preset.__doc__ = entry.name, f'{entry.paper}; settings: see :meth:`Entry.build`.'
    return MODELS.register_module(name=entry.name)(preset)


ZOO_PRESETS = {entry.name: _preset(entry) for entry in ZOO}
"""The methods of the zoo by name, as registered."""
