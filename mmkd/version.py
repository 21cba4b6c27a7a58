"""The version of mmkd."""
__version__ = '0.1.0'
