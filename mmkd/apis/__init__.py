from .compose import compose_distillation
from .config import is_distillation, prepare_config, student_config

__all__ = ['compose_distillation', 'is_distillation', 'prepare_config', 'student_config']
