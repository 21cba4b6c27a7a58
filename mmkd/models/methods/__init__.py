from . import zoo
from .base import Method
from .bckd import BCKD
from .box_distill import BoxDistill
from .crosskd import CrossKD
from .deit import DeiT
from .feature_distill import FeatureDistill
from .ld import LD
from .logit_distill import LogitDistill
from .mixins import EpochReports, OptimizerSettings, PhasedMethod, TrainLabelsMethod
from .prediction_kd import PredictionKD
from .presets import DML, KD, LSKD, SHAKE, SOKD, KDTuned
from .protocols import PROTOCOLS
from .proxy_distill import ProxyDistill
from .query_boxes import QueryBoxes
from .sakd import SAKD, SpotAdaptiveDistill
from .zoo import *  # noqa: F403

__all__ = [
    'BCKD', 'DML', 'KD', 'LD', 'LSKD', 'PROTOCOLS', 'SAKD', 'SHAKE', 'SOKD', 'BoxDistill', 'CrossKD', 'DeiT',
    'EpochReports', 'FeatureDistill', 'KDTuned', 'LogitDistill', 'Method', 'OptimizerSettings',
    'PhasedMethod', 'PredictionKD', 'ProxyDistill', 'QueryBoxes', 'SpotAdaptiveDistill',
    'TrainLabelsMethod'
]
__all__ += zoo.__all__
