from .kl import bernoulli_kl_divergence, kl_divergence
from .pkd import PKDLoss, pearson_distance
from .standardization import standardize_logits

__all__ = ['PKDLoss', 'bernoulli_kl_divergence', 'kl_divergence', 'pearson_distance', 'standardize_logits']
