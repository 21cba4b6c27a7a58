from .base import Method
from .crosskd import CrossKD
from .deit import DeiT
from .feature_distill import FeatureDistill
from .ld import LD
from .logit_distill import LogitDistill
from .presets import DML, KD, PRESETS, SHAKE, SOKD, KDTuned
from .proxy_distill import ProxyDistill
from .sakd import SAKD, SpotAdaptiveDistill
from .zoo import PROTOCOLS, ZOO

__all__ = [
    'DML',
    'KD',
    'LD',
    'PRESETS',
    'PROTOCOLS',
    'SAKD',
    'SHAKE',
    'SOKD',
    'ZOO',
    'CrossKD',
    'DeiT',
    'FeatureDistill',
    'KDTuned',
    'LogitDistill',
    'Method',
    'ProxyDistill',
    'SpotAdaptiveDistill'
]
