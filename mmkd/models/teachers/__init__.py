from .building import load_strictly, read_teacher_config
from .cache import TeacherCache, fingerprint_of
from .class_mapping import ClassMapping
from .normalization import BatchConverter, image_shapes
from .teacher import Teacher, build_teachers

__all__ = [
    'BatchConverter', 'ClassMapping', 'Teacher', 'TeacherCache', 'build_teachers', 'fingerprint_of',
    'image_shapes', 'load_strictly', 'read_teacher_config'
]
