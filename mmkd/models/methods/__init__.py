from .base import Method
from .crosskd import CrossKD
from .deit import DeiT
from .feature_distill import FeatureDistill
from .ld import LD
from .logit_distill import LogitDistill
from .mixins import EpochReports, OptimizerSettings, PhasedMethod, TrainLabelsMethod
from .presets import DML, KD, SHAKE, SOKD, KDTuned
from .protocols import PROTOCOLS
from .proxy_distill import ProxyDistill
from .sakd import SAKD, SpotAdaptiveDistill
from .table import METHODS, TASKS, MethodEntry
from .zoo import (
    AB,
    AT,
    CC,
    CRD,
    CWD,
    DIST,
    DKD,
    FGD,
    FSP,
    FT,
    KDSVD,
    MGD,
    NST,
    OFD,
    PKD,
    PKT,
    RKD,
    SP,
    VID,
    ZOO,
    FitNet,
    HardLabel,
    ReviewKD,
)

__all__ = [
    'AB',
    'AT',
    'CC',
    'CRD',
    'CWD',
    'DIST',
    'DKD',
    'DML',
    'FGD',
    'FSP',
    'FT',
    'KD',
    'KDSVD',
    'LD',
    'METHODS',
    'MGD',
    'NST',
    'OFD',
    'PKD',
    'PKT',
    'PROTOCOLS',
    'RKD',
    'SAKD',
    'SHAKE',
    'SOKD',
    'SP',
    'TASKS',
    'VID',
    'ZOO',
    'CrossKD',
    'DeiT',
    'EpochReports',
    'FeatureDistill',
    'FitNet',
    'HardLabel',
    'KDTuned',
    'LogitDistill',
    'Method',
    'MethodEntry',
    'OptimizerSettings',
    'PhasedMethod',
    'ProxyDistill',
    'ReviewKD',
    'SpotAdaptiveDistill',
    'TrainLabelsMethod'
]
