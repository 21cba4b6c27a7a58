from .checkpoint_hook import CheckpointHook
from .exact_resume_hook import ExactResumeHook
from .teacher_check_hook import TeacherCheckHook
from .teacher_gap_hook import TeacherGapHook
from .weight_schedule_hook import WeightScheduleHook

__all__ = ['CheckpointHook', 'ExactResumeHook', 'TeacherCheckHook', 'TeacherGapHook', 'WeightScheduleHook']
