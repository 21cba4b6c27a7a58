from .checkpoint_hook import CheckpointHook
from .epoch_report_hook import EpochReportHook
from .exact_resume_hook import ExactResumeHook
from .first_phase_hook import FirstPhaseHook
from .teacher_check_hook import TeacherCheckHook
from .teacher_gap_hook import TeacherGapHook
from .train_labels_hook import TrainLabelsHook
from .weight_schedule_hook import WeightScheduleHook

__all__ = [
    'CheckpointHook', 'EpochReportHook', 'ExactResumeHook', 'FirstPhaseHook', 'TeacherCheckHook',
    'TeacherGapHook', 'TrainLabelsHook', 'WeightScheduleHook'
]
