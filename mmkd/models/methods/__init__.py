from .base import Method
from .feature_distill import FeatureDistill
from .presets import KD, PKD, PRESETS, SHAKE
from .proxy_distill import ProxyDistill

__all__ = ['FeatureDistill', 'KD', 'Method', 'PKD', 'PRESETS', 'ProxyDistill', 'SHAKE']
