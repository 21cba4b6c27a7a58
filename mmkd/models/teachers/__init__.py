from .building import load_strictly, read_teacher_config
from .normalization import BatchConverter
from .teacher import Teacher, build_teachers

__all__ = ['BatchConverter', 'Teacher', 'build_teachers', 'load_strictly', 'read_teacher_config']
