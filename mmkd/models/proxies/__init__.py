from .base import Proxy, build_proxy
from .knowledge_bridge import KnowledgeBridge
from .networks import PeerNetwork, TunedTeacher
from .shadow_head import ShadowHead

__all__ = ['KnowledgeBridge', 'PeerNetwork', 'Proxy', 'ShadowHead', 'TunedTeacher', 'build_proxy']
