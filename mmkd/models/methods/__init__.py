from .base import Method
from .deit import DeiT
from .feature_distill import FeatureDistill
from .presets import DML, KD, PKD, PRESETS, SHAKE, SOKD, KDTuned
from .proxy_distill import ProxyDistill

__all__ = [
    'DML', 'DeiT', 'FeatureDistill', 'KD', 'KDTuned', 'Method', 'PKD', 'PRESETS', 'ProxyDistill', 'SHAKE',
    'SOKD'
]
