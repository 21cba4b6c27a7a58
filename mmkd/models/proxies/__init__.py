from .shadow_head import ShadowHead

__all__ = ['ShadowHead']
