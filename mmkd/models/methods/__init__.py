from .base import Method
from .crosskd import CrossKD
from .deit import DeiT
from .feature_distill import FeatureDistill
from .ld import LD
from .logit_distill import LogitDistill
from .presets import DML, KD, PRESETS, SHAKE, SOKD, KDTuned
from .proxy_distill import ProxyDistill
from .spot_adaptive import SAKD, SpotAdaptiveDistill
from .zoo import PROTOCOLS, ZOO

__all__ = [
    'CrossKD', 'DML', 'DeiT', 'FeatureDistill', 'KD', 'KDTuned', 'LD', 'LogitDistill', 'Method', 'PRESETS',
    'PROTOCOLS', 'ProxyDistill', 'SAKD', 'SHAKE', 'SOKD', 'SpotAdaptiveDistill', 'ZOO'
]
