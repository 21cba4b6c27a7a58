"""The methods of a training in words."""
from .base import Method


def describe(method: Method) -> str:
    return type(method).__name__
