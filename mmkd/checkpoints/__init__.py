from .atomic_files import AtomicFileBackend, latest_checkpoint, remove_partial_files, write_atomic
from .finite import check_valid, find_invalid
from .mmengine_loaders import SAFE_PREFIX, use_safe_loaders
from .safe_loading import load_checkpoint, student_state_dict

__all__ = [
    'SAFE_PREFIX', 'AtomicFileBackend', 'check_valid', 'find_invalid', 'latest_checkpoint', 'load_checkpoint',
    'remove_partial_files', 'student_state_dict', 'use_safe_loaders', 'write_atomic'
]
