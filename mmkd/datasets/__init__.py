from .replayed import ReplayedDataset
from .resident import ResidentDataset, as_batch
from .view_sampler import ViewSampler

__all__ = ['ReplayedDataset', 'ResidentDataset', 'ViewSampler', 'as_batch']
