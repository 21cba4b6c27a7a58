from .recorder import Place, Recorder
from .resolve import resolve_spot

__all__ = ['Place', 'Recorder', 'resolve_spot']
