from .classifier_distiller import ClassifierDistiller
from .detector_distiller import DetectorDistiller

__all__ = ['ClassifierDistiller', 'DetectorDistiller']
