"""The methods that are one loss at usual spots, as classes: settings of FeatureDistill and LogitDistill."""
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from ...registry import MODELS
from .. import losses
from .base import Method
from .feature_distill import FeatureDistill
from .logit_distill import LogitDistill
from .protocols import PROTOCOLS


class ZooEntry(NamedTuple):
    """A method of this module.

    Args:
        cls: The class of the method.
        loss: The class of its loss.
        task: The kinds of networks that it has usual spots in: ``'classifier'``, ``'two-stage'``,
            ``'dense'``, ``'query-based'``.
        paper: Title, authors and venue.
    """
    cls: type[Method]
    loss: type[nn.Module]
    task: tuple[str, ...]
    paper: str


ZOO: dict[str, ZooEntry] = {}
"""The methods of this module by name."""


def _method(paper: str,
            loss: type[nn.Module],
            classifier: str | Sequence[str] | None = None,
            detector: str | None = None,
            **defaults: Any) -> type[Method]:
    """Create and register the method of a loss; it takes the arguments of the loss as well.

    Args:
        paper: Title, authors and venue.
        loss: The class of the loss: the paper's acronym and ``Loss``.
        classifier: Where features of classifiers are compared; ``None`` if they are not.
        detector: Where features of detectors are compared; ``None`` if they are not.
        **defaults: Defaults that differ from those of the loss, of :class:`FeatureDistill` or of
            :class:`LogitDistill`.
    """
    name = loss.__name__.removesuffix('Loss')
    base: Any = FeatureDistill
    task = (*(['classifier'] if classifier else []),
            *(['two-stage', 'dense', 'query-based'] if detector else []))
    if issubclass(loss, losses.LogitLoss):
        base = LogitDistill
        task = ('classifier', 'two-stage')
    else:
        defaults['spot'] = dict(classifier=classifier, detector=detector)
    published = name in PROTOCOLS['crd']
    if published:
        defaults['weight'] = PROTOCOLS['crd'][name]
    of_loss = _arguments(loss)

    def __init__(self: Method, **settings: Any) -> None:  # noqa: N807
        arguments = {**defaults, **settings}
        if published:
            protocol = arguments.pop('protocol', 'crd')
            arguments['weight'] = settings.get('weight', PROTOCOLS[protocol][name])
        loss_cfg = {key: arguments.pop(key) for key in of_loss if key in arguments}
        super(cls, self).__init__(dict(type=f'mmkd.{loss.__name__}', **loss_cfg), **arguments)

    parameters = {
        key: parameter.replace(kind=parameter.KEYWORD_ONLY, default=defaults.get(key, parameter.default))
        for key, parameter in {**of_loss, **_arguments(base)}.items() if key != 'loss'}
    first = [parameters.pop('weight'), *([_PROTOCOL] if published else [])]
    signature = inspect.Signature([_SELF, *first, *parameters.values()])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    documented = {**_documented_arguments(base), **_documented_arguments(loss), 'protocol': _PROTOCOL_DOC}
    summary = f'A :class:`{base.__name__}` with the loss :class:`~mmkd.models.losses.{loss.__name__}`.'
    arguments = [f'    {key}: {documented.get(key, "Loss weight.")}' for key in signature.parameters
                 if key != 'self']
    doc = '\n'.join([f'{paper}.', '', summary, '', 'Args:', *arguments])
    members = dict(__init__=__init__, __doc__=doc, __module__=__name__)
    cls: Any = MODELS.register_module()(type(name, (base, ), members))
    ZOO[name] = ZooEntry(cls, loss, task, paper)
    return cls


def _arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Return the named arguments of a class, by their names."""
    return {name: parameter for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD}


def _documented_arguments(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says about its arguments, by their names."""
    _, _, section = (inspect.getdoc(cls) or '').partition('\nArgs:\n')
    return dict(re.findall(r'^    (\w+): (.*(?:\n {5,}.*)*)', section.split('\n\n')[0], flags=re.MULTILINE))


_SELF = inspect.Parameter('self', inspect.Parameter.POSITIONAL_ONLY)
_PROTOCOL = inspect.Parameter(
    'protocol', inspect.Parameter.KEYWORD_ONLY, default='crd', annotation=Literal['crd', 'sakd'])
_PROTOCOL_DOC = ("The published comparison that the default of ``weight`` is taken from: ``'crd'`` or\n"
                 "        ``'sakd'``, see :data:`~mmkd.models.methods.PROTOCOLS`.")

_IF_SHAPES_DIFFER: Mapping[str, Any] = dict(type='mmkd.ConvConnector', relu=False, skip_same=True)
_IF_CHANNELS_DIFFER: Mapping[str, Any] = dict(
    type='mmkd.ConvConnector', kernel_size=1, norm=False, relu=False, skip_same=True)
_CONV_BN: Mapping[str, Any] = dict(type='mmkd.ConvConnector', kernel_size=1, relu=False, pool=True)

FitNet = _method('FitNets: hints for thin deep nets (Romero et al., ICLR 2015)', losses.FitNetLoss,
                 'stage2', 'neck', connector=dict(type='mmkd.ConvConnector'))
AT = _method('Attention transfer (Zagoruyko and Komodakis, ICLR 2017)', losses.ATLoss, 'stages', 'neck')
NST = _method('Neuron selectivity transfer (Huang and Wang, 2017)', losses.NSTLoss, 'stages', 'neck')
VID = _method('Variational information distillation (Ahn et al., CVPR 2019)', losses.VIDLoss,
              'stages', 'neck')
KDSVD = _method('Knowledge distillation by singular value decomposition (Lee et al., ECCV 2018)',
                losses.KDSVDLoss, 'stages', connector=_IF_SHAPES_DIFFER)
AB = _method('Activation boundaries (Heo et al., AAAI 2019)', losses.ABLoss, 'preactivations',
             connector=_CONV_BN, first_phase_epochs=30)
FSP = _method('Flow of the solution procedure (Yim et al., CVPR 2017)', losses.FSPLoss, 'stages',
              connector=_IF_SHAPES_DIFFER, first_phase_epochs=30)
FT = _method('Factor transfer (Kim et al., NeurIPS 2018)', losses.FTLoss, 'last_stage', 'neck',
             first_phase_epochs=30)
# The authors use the weight 1/1000 on CIFAR-100 and 1/10000 on ImageNet.
OFD = _method('Overhaul of feature distillation (Heo et al., ICCV 2019)', losses.OFDLoss, 'preactivations',
              weight=1e-3, connector=_CONV_BN)
ReviewKD = _method('Knowledge review (Chen et al., CVPR 2021)', losses.ReviewKDLoss,
                   ('stages', 'features'), 'neck', weight=1.0, mid_channels=None)
SP = _method('Similarity preserving (Tung and Mori, ICCV 2019)', losses.SPLoss, 'last_stage', 'neck')
CC = _method('Correlation congruence (Peng et al., ICCV 2019)', losses.CCLoss, 'features')
RKD = _method('Relational knowledge distillation (Park et al., CVPR 2019)', losses.RKDLoss, 'features')
PKT = _method('Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)', losses.PKTLoss, 'features')
CRD = _method('Contrastive representation distillation (Tian et al., ICLR 2020)', losses.CRDLoss, 'features')
PKD = _method('Pearson correlation of features (Cao et al., NeurIPS 2022)', losses.PKDLoss,
              'last_stage', 'neck', weight=6.0, connector=_IF_SHAPES_DIFFER)
# MMRazor uses this weight on the levels of an FPN, at temperature 1.
CWD = _method('Channel-wise distillation (Shu et al., ICCV 2021)', losses.CWDLoss,
              'last_stage', 'neck', weight=10.0, connector=_IF_SHAPES_DIFFER)
FGD = _method('Focal and global distillation (Yang et al., CVPR 2022)', losses.FGDLoss,
              detector='neck', weight=1.0, connector=_IF_CHANNELS_DIFFER)
MGD = _method('Masked generative distillation (Yang et al., ECCV 2022)', losses.MGDLoss,
              'last_stage', 'neck', weight=2e-5, connector=_IF_CHANNELS_DIFFER)
DKD = _method('Decoupled knowledge distillation (Zhao et al., CVPR 2022)', losses.DKDLoss)
DIST = _method('Distillation from a stronger teacher (Huang et al., NeurIPS 2022)', losses.DISTLoss)
# The released code has the weight 0.9 and averages masks that are 1 for half of the samples and classes.
MLKD = _method('Multi-level logit distillation (Jin et al., CVPR 2023)', losses.MLKDLoss, weight=0.45)
CTKD = _method('Curriculum temperature (Li et al., AAAI 2023)', losses.CTKDLoss, weight=0.9)
WTTM = _method('Weighted transformed teacher matching (Zheng and Yang, ICLR 2024)', losses.WTTMLoss,
               weight=4.0)
RLD = _method('Distillation with refined logits (Sun et al., 2024)', losses.RLDLoss)
HardLabel = _method("The teacher's most likely class as a second label (Touvron et al., ICML 2021)",
                    losses.HardLabelLoss)

__all__ = ['AB', 'AT', 'CC', 'CRD', 'CTKD', 'CWD', 'DIST', 'DKD', 'FGD', 'FSP', 'FT', 'KDSVD', 'MGD', 'MLKD',
           'NST', 'OFD', 'PKD', 'PKT', 'RKD', 'RLD', 'SP', 'VID', 'WTTM', 'ZOO', 'FitNet', 'HardLabel',
           'ReviewKD']
