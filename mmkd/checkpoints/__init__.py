from .safe_loading import SAFE_PREFIX, load_checkpoint, student_state_dict
from .whole_files import WholeFileBackend, latest_checkpoint, remove_partial_files, write_whole

__all__ = [
    'SAFE_PREFIX', 'WholeFileBackend', 'latest_checkpoint', 'load_checkpoint',
    'remove_partial_files', 'student_state_dict', 'write_whole'
]
