from .kl import kl_divergence
from .pkd import PKDLoss, pearson_distance

__all__ = ['PKDLoss', 'kl_divergence', 'pearson_distance']
