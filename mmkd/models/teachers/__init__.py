from .building import load_strictly, read_teacher_config
from .cache import TeacherCache
from .class_mapping import ClassMapping
from .fingerprint import check_cache, fingerprint_of
from .nan_layers import record_nan_layers
from .normalization import BatchConverter, image_shapes
from .teacher import Teacher, build_teachers

__all__ = [
    'BatchConverter', 'ClassMapping', 'Teacher', 'TeacherCache', 'build_teachers', 'check_cache',
    'fingerprint_of', 'image_shapes', 'load_strictly', 'read_teacher_config', 'record_nan_layers'
]
