from .base import Proxy
from .knowledge_bridge import KnowledgeBridge
from .networks import PeerNetwork, TunedTeacher
from .shadow_head import ShadowHead

__all__ = ['KnowledgeBridge', 'PeerNetwork', 'Proxy', 'ShadowHead', 'TunedTeacher']
