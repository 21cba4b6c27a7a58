from .building import load_strictly, read_teacher_config
from .normalization import BatchConverter, image_shapes
from .teacher import Teacher, build_teachers

__all__ = [
    'BatchConverter', 'Teacher', 'build_teachers', 'image_shapes', 'load_strictly', 'read_teacher_config'
]
