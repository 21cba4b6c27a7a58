from .hooks import *  # noqa: F403
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop
from .optimizers import *  # noqa: F403

__all__ = ['EpochBasedTrainLoop', 'IterBasedTrainLoop']
