from .replayed import ReplayedDataset
from .resident import ResidentDataset, as_batch
from .view_sampler import ViewSampler
from .wrong_labels import WrongLabels

__all__ = ['ReplayedDataset', 'ResidentDataset', 'ViewSampler', 'WrongLabels', 'as_batch']
