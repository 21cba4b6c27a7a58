from .hooks import module_hooks
from .logits import LogitLayout, SampleWeight, check_comparable, logit_layout
from .probing import classify, classify_map, common_probe_size, probe, record
from .queries import is_query_based, queries_of
from .query_match import SampleMatch
from .recorder import HookPoint, Recorder
from .resolve import classification_heads, is_classifier, is_two_stage, library_scope, resolve_spot
from .shared_queries import QueryMatching, build_match
from .splitting import Split, split, stage_names

__all__ = [
    'HookPoint', 'LogitLayout', 'QueryMatching', 'Recorder', 'SampleMatch', 'SampleWeight', 'Split',
    'build_match', 'check_comparable', 'classification_heads', 'classify', 'classify_map',
    'common_probe_size', 'is_classifier', 'is_query_based', 'is_two_stage', 'library_scope', 'logit_layout',
    'module_hooks', 'probe', 'queries_of', 'record', 'resolve_spot', 'split', 'stage_names'
]
