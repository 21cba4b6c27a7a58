from .checkpoint_hook import CheckpointHook
from .exact_resume_hook import ExactResumeHook
from .finite_check_hook import FiniteCheckHook
from .gradient_ratio_hook import GradientRatioHook
from .hang_hook import HangHook
from .method_hooks import EpochReportHook, FirstPhaseHook, TrainLabelsHook
from .preemption_hook import PreemptionHook
from .teacher_check_hook import TeacherCheckHook
from .teacher_gap_hook import TeacherGapHook
from .warmup_hook import WarmupHook
from .weight_schedule_hook import WeightScheduleHook

__all__ = [
    'CheckpointHook', 'EpochReportHook', 'ExactResumeHook', 'FiniteCheckHook', 'FirstPhaseHook',
    'GradientRatioHook', 'HangHook', 'PreemptionHook', 'TeacherCheckHook', 'TeacherGapHook',
    'TrainLabelsHook', 'WarmupHook', 'WeightScheduleHook'
]
