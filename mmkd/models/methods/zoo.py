"""The methods that are one loss at usual spots, as classes: settings of FeatureDistill and LogitDistill."""
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import check_choice
from ...registry import MODELS
from .. import losses
from .base import Method
from .feature_distill import FeatureDistill
from .logit_distill import LogitDistill
from .protocols import PROTOCOLS


@dataclass(frozen=True)
class ZooEntry:
    """A method of this module.

    Args:
        cls: The class of the method.
        loss: The class of its loss.
        task: The kinds of networks that it has usual spots in: ``'classifier'``, ``'two-stage'``,
            ``'dense'``.
        paper: Title, authors and venue.
    """
    cls: type[Method]
    loss: type[nn.Module]
    task: tuple[str, ...]
    paper: str


ZOO: dict[str, ZooEntry] = {}
"""The methods of this module by name."""

_PROTOCOL = inspect.Parameter('protocol', inspect.Parameter.KEYWORD_ONLY, default='crd', annotation=str)
_PROTOCOL_DOC = ("The published comparison that the default of ``weight`` is taken from: ``'crd'`` or "
                 "``'sakd'``, see :data:`~mmkd.models.methods.PROTOCOLS`.")


def _feature_method(name: str,
                    paper: str,
                    loss: type[nn.Module],
                    classifier: str | Sequence[str] | None = None,
                    detector: str | None = None,
                    **defaults: Any) -> type[FeatureDistill]:
    """Create and register a feature method.

    Args:
        name: The paper's acronym.
        paper: Title, authors and venue.
        loss: The class of its loss.
        classifier: The spots at which features of classifiers are compared; ``None`` if there are none.
        detector: The spot at which features of detectors are compared.
        **defaults: Defaults that differ from those of the loss and of :class:`FeatureDistill`.
    """
    defaults = dict(spot=dict(classifier=classifier, detector=detector), **defaults)
    cls = _create(FeatureDistill, name, paper, loss, defaults)
    task = (*(['classifier'] if classifier else []), *(['two-stage', 'dense'] if detector else []))
    ZOO[name] = ZooEntry(cls, loss, task, paper)
    return cls


def _logit_method(name: str, paper: str, loss: type[nn.Module], **defaults: Any) -> type[LogitDistill]:
    """Create and register a method for logits; arguments as for :func:`_feature_method`."""
    cls = _create(LogitDistill, name, paper, loss, defaults)
    ZOO[name] = ZooEntry(cls, loss, ('classifier', 'two-stage'), paper)
    return cls


def _create(base: type, name: str, paper: str, loss: type[nn.Module], defaults: dict) -> Any:
    """Create a subclass of FeatureDistill or LogitDistill that takes the arguments of its loss as well."""
    of_loss, of_base = _arguments(loss), _arguments(base)
    of_base.pop('loss')
    published = name in PROTOCOLS['crd']
    if published:
        defaults = dict(defaults, weight=PROTOCOLS['crd'][name])
    parameters = {
        key: parameter.replace(kind=parameter.KEYWORD_ONLY, default=defaults.get(key, parameter.default))
        for key, parameter in {**of_loss, **of_base}.items()}
    ordered = [parameters.pop('weight'), *([_PROTOCOL] if published else []), *parameters.values()]
    signature = inspect.Signature(ordered)

    def __init__(self: Method, **settings: Any) -> None:  # noqa: N807
        values = signature.bind(**settings)
        values.apply_defaults()
        arguments = values.arguments
        if published:
            protocol = arguments.pop('protocol')
            check_choice(protocol, tuple(PROTOCOLS), 'protocol')
            if 'weight' not in settings:
                arguments['weight'] = PROTOCOLS[protocol][name]
        loss_cfg = {key: arguments.pop(key) for key in of_loss}
        super(cls, self).__init__(dict(type=f'mmkd.{loss.__name__}', **loss_cfg), **arguments)

    self_parameter = inspect.Parameter('self', inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = inspect.Signature([self_parameter, *ordered])  # type: ignore[attr-defined]
    documented = dict(_documented_arguments(base), **_documented_arguments(loss), protocol=_PROTOCOL_DOC)
    lines = [textwrap.fill(
        f'{parameter.name}: {documented.get(parameter.name, "Factor of the loss.")}', 100,
        initial_indent=' ' * 4, subsequent_indent=' ' * 8) for parameter in ordered]
    summary = f'A :class:`{base.__name__}` with the loss :class:`~mmkd.models.losses.{loss.__name__}`.'
    doc = '\n'.join([f'{paper}.', '', summary, '', 'Args:', *lines])
    cls: Any = type(name, (base, ), dict(__init__=__init__, __doc__=doc, __module__=__name__))
    return MODELS.register_module()(cls)


def _arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Return the named arguments of a class, by their names."""
    return {name: parameter for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD}


def _documented_arguments(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says about its arguments, by their names."""
    _, _, section = (inspect.getdoc(cls) or '').partition('\nArgs:\n')
    section = section.split('\n\n')[0]
    return {name: ' '.join(text.split()) for name, text in
            re.findall(r'^    (\w+): (.*(?:\n {5,}.*)*)', section, flags=re.MULTILINE)}


_IF_SHAPES_DIFFER: Mapping[str, Any] = dict(type='mmkd.ConvConnector', relu=False, skip_same=True)

FitNet = _feature_method(
    'FitNet', 'FitNets: hints for thin deep nets (Romero et al., ICLR 2015)', losses.FitNetLoss,
    classifier='stage2', detector='neck', connector=dict(type='mmkd.ConvConnector'))

AT = _feature_method(
    'AT', 'Attention transfer (Zagoruyko and Komodakis, ICLR 2017)', losses.ATLoss,
    classifier='stages', detector='neck')

NST = _feature_method(
    'NST', 'Neuron selectivity transfer (Huang and Wang, 2017)', losses.NSTLoss,
    classifier='stages', detector='neck')

VID = _feature_method(
    'VID', 'Variational information distillation (Ahn et al., CVPR 2019)', losses.VIDLoss,
    classifier='stages', detector='neck')

KDSVD = _feature_method(
    'KDSVD', 'Knowledge distillation by singular value decomposition (Lee et al., ECCV 2018)',
    losses.KDSVDLoss, classifier='stages', connector=_IF_SHAPES_DIFFER)

AB = _feature_method(
    'AB', 'Activation boundaries (Heo et al., AAAI 2019)', losses.ABLoss,
    classifier='preactivations', first_phase_epochs=30)

FSP = _feature_method(
    'FSP', 'Flow of the solution procedure (Yim et al., CVPR 2017)', losses.FSPLoss,
    classifier='stages', connector=_IF_SHAPES_DIFFER, first_phase_epochs=30)

FT = _feature_method(
    'FT', 'Factor transfer (Kim et al., NeurIPS 2018)', losses.FTLoss,
    classifier='last_stage', detector='neck', first_phase_epochs=30)

OFD = _feature_method(
    'OFD', 'Overhaul of feature distillation (Heo et al., ICCV 2019)', losses.OFDLoss,
    # The authors use 1/1000 on CIFAR-100 and 1/10000 on ImageNet.
    classifier='preactivations', weight=1e-3)

ReviewKD = _feature_method(
    'ReviewKD', 'Knowledge review (Chen et al., CVPR 2021)', losses.ReviewKDLoss,
    classifier=('stages', 'features'), detector='neck', weight=1.0, mid_channels=None)

SP = _feature_method(
    'SP', 'Similarity preserving (Tung and Mori, ICCV 2019)', losses.SPLoss,
    classifier='last_stage', detector='neck')

CC = _feature_method(
    'CC', 'Correlation congruence (Peng et al., ICCV 2019)', losses.CCLoss, classifier='features')

RKD = _feature_method(
    'RKD', 'Relational knowledge distillation (Park et al., CVPR 2019)', losses.RKDLoss,
    classifier='features')

PKT = _feature_method(
    'PKT', 'Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)', losses.PKTLoss,
    classifier='features')

CRD = _feature_method(
    'CRD', 'Contrastive representation distillation (Tian et al., ICLR 2020)', losses.CRDLoss,
    classifier='features')

PKD = _feature_method(
    'PKD', 'Pearson correlation of features (Cao et al., NeurIPS 2022)', losses.PKDLoss,
    classifier='last_stage', detector='neck', weight=6.0, connector=_IF_SHAPES_DIFFER)

CWD = _feature_method(
    'CWD', 'Channel-wise distillation (Shu et al., ICCV 2021)', losses.CWDLoss,
    # MMRazor uses this weight on the levels of an FPN, at temperature 1.
    classifier='last_stage', detector='neck', weight=10.0, connector=_IF_SHAPES_DIFFER)

FGD = _feature_method(
    'FGD', 'Focal and global distillation (Yang et al., CVPR 2022)', losses.FGDLoss,
    detector='neck', weight=1.0)

MGD = _feature_method(
    'MGD', 'Masked generative distillation (Yang et al., ECCV 2022)', losses.MGDLoss,
    classifier='last_stage', detector='neck', weight=2e-5)

DKD = _logit_method('DKD', 'Decoupled knowledge distillation (Zhao et al., CVPR 2022)', losses.DKDLoss)

DIST = _logit_method(
    'DIST', 'Distillation from a stronger teacher (Huang et al., NeurIPS 2022)', losses.DISTLoss)

HardLabel = _logit_method(
    'HardLabel', "The teacher's most likely class as a second label (Touvron et al., ICML 2021)",
    losses.HardLabelLoss)
