from .base import Method
from .feature_distill import FeatureDistill
from .presets import DML, KD, PKD, PRESETS, SHAKE, SOKD, KDTuned
from .proxy_distill import ProxyDistill

__all__ = [
    'DML', 'FeatureDistill', 'KD', 'KDTuned', 'Method', 'PKD', 'PRESETS', 'ProxyDistill', 'SHAKE', 'SOKD'
]
