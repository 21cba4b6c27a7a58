from .checkpoint_hook import CheckpointHook
from .exact_resume_hook import ExactResumeHook
from .teacher_check_hook import TeacherCheckHook

__all__ = ['CheckpointHook', 'ExactResumeHook', 'TeacherCheckHook']
