from .hooks import *  # noqa: F403
from .optimizers import *  # noqa: F403
from .workers import seed_worker

__all__ = ['seed_worker']
