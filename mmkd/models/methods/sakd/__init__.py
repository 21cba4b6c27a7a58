from .method import SAKD, SpotAdaptiveDistill

__all__ = ['SAKD', 'SpotAdaptiveDistill']
