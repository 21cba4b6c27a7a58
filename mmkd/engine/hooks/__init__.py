from .checkpoint_hook import CheckpointHook
from .exact_resume_hook import ExactResumeHook
from .method_info_hook import MethodInfoHook
from .teacher_check_hook import TeacherCheckHook
from .teacher_gap_hook import TeacherGapHook
from .weight_schedule_hook import WeightScheduleHook

__all__ = [
    'CheckpointHook', 'ExactResumeHook', 'MethodInfoHook', 'TeacherCheckHook', 'TeacherGapHook',
    'WeightScheduleHook'
]
