from .base import Proxy, build_proxy
from .copied_head import CopiedHead
from .copied_tail import CopiedTail
from .frozen_head_layers import FrozenHeadLayers
from .whole_network import WholeNetwork

__all__ = ['CopiedHead', 'CopiedTail', 'FrozenHeadLayers', 'Proxy', 'WholeNetwork', 'build_proxy']
