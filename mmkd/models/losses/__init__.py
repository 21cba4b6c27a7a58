from .ab import ABLoss
from .at import ATLoss
from .base import FeatureLoss, LogitLoss, RelationalFeatureLoss
from .cc import CCLoss
from .crd import CRDLoss
from .ctkd import CTKDLoss
from .cwd import CWDLoss
from .dist import DISTLoss
from .dkd import DKDLoss
from .fgd import FGDLoss
from .fitnet import FitNetLoss
from .fsp import FSPLoss
from .ft import FTLoss
from .hard_label import HardLabelLoss
from .kdsvd import KDSVDLoss
from .kl import bernoulli_kl_divergence, kl_divergence
from .mgd import MGDLoss
from .mlkd import MLKDLoss
from .nst import NSTLoss
from .ofd import OFDLoss
from .pkd import PKDLoss, pearson_distance
from .pkt import PKTLoss
from .reviewkd import ReviewKDLoss
from .rkd import RKDLoss
from .rld import RLDLoss
from .sp import SPLoss
from .standardization import standardize_logits
from .tensors import at_least_float32
from .vid import VIDLoss
from .wttm import WTTMLoss

__all__ = [
    'ABLoss', 'ATLoss', 'CCLoss', 'CRDLoss', 'CTKDLoss', 'CWDLoss', 'DISTLoss', 'DKDLoss', 'FGDLoss',
    'FSPLoss', 'FTLoss', 'FeatureLoss', 'FitNetLoss', 'HardLabelLoss', 'KDSVDLoss', 'LogitLoss', 'MGDLoss',
    'MLKDLoss', 'NSTLoss', 'OFDLoss', 'PKDLoss', 'PKTLoss', 'RKDLoss', 'RLDLoss', 'RelationalFeatureLoss',
    'ReviewKDLoss', 'SPLoss', 'VIDLoss', 'WTTMLoss', 'at_least_float32', 'bernoulli_kl_divergence',
    'kl_divergence', 'pearson_distance', 'standardize_logits'
]
