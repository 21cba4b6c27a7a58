from .atomic_files import AtomicFileBackend, latest_checkpoint, remove_partial_files, write_atomic
from .finite import check_valid, find_invalid
from .safe_loading import SAFE_PREFIX, load_checkpoint, student_state_dict

__all__ = [
    'SAFE_PREFIX', 'AtomicFileBackend', 'check_valid', 'find_invalid', 'latest_checkpoint',
    'load_checkpoint', 'remove_partial_files', 'student_state_dict', 'write_atomic'
]
