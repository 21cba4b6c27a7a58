from .logits import WHERE, LogitLayout, check_comparable, logit_layout
from .probing import classify, probe
from .recorder import Place, Recorder
from .resolve import NAMED_SPOTS, classification_heads, is_two_stage, resolve_spot

__all__ = [
    'LogitLayout', 'NAMED_SPOTS', 'Place', 'Recorder', 'WHERE', 'check_comparable', 'classification_heads',
    'classify', 'is_two_stage', 'logit_layout', 'probe', 'resolve_spot'
]
