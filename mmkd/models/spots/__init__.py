from .hooks import module_hooks
from .logits import SAMPLE_WEIGHTS, LogitLayout, check_comparable, logit_layout
from .probing import classify, classify_map, common_probe_size, probe, record
from .recorder import HookPoint, Recorder
from .resolve import (
    NAMED_SPOTS,
    classification_heads,
    is_classifier,
    is_two_stage,
    library_scope,
    resolve_spot,
)
from .stages import keep_last_stage, last_stage, resolution_stages, run_last_stage

__all__ = [
    'NAMED_SPOTS',
    'SAMPLE_WEIGHTS',
    'HookPoint',
    'LogitLayout',
    'Recorder',
    'check_comparable',
    'classification_heads',
    'classify',
    'classify_map',
    'common_probe_size',
    'is_classifier',
    'is_two_stage',
    'keep_last_stage',
    'last_stage',
    'library_scope',
    'logit_layout',
    'module_hooks',
    'probe',
    'record',
    'resolution_stages',
    'resolve_spot',
    'run_last_stage'
]
