from .detector_distiller import DetectorDistiller

__all__ = ['DetectorDistiller']
