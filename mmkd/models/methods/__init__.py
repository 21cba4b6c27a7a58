from . import zoo
from .base import Method
from .crosskd import CrossKD
from .deit import DeiT
from .feature_distill import FeatureDistill
from .ld import LD
from .logit_distill import LogitDistill
from .mixins import EpochReports, OptimizerSettings, PhasedMethod, TrainLabelsMethod
from .presets import DML, KD, LSKD, SHAKE, SOKD, KDTuned
from .protocols import PROTOCOLS
from .proxy_distill import ProxyDistill
from .sakd import SAKD, SpotAdaptiveDistill
from .zoo import *  # noqa: F403

__all__ = [
    'DML', 'KD', 'LD', 'LSKD', 'PROTOCOLS', 'SAKD', 'SHAKE', 'SOKD', 'CrossKD', 'DeiT',
    'EpochReports', 'FeatureDistill', 'KDTuned', 'LogitDistill', 'Method', 'OptimizerSettings',
    'PhasedMethod', 'ProxyDistill', 'SpotAdaptiveDistill', 'TrainLabelsMethod'
]
__all__ += zoo.__all__
