from .conv import ConvConnector
from .linear import LinearConnector

__all__ = ['ConvConnector', 'LinearConnector']
