"""Checks of settings: what is registered in mmkd accepts only what its annotated signature allows.

A class declares the type and range of a setting where it declares the setting:

.. code-block:: python

    @MODELS.register_module()
    class MyLoss(FeatureLoss):

        def __init__(self, weight: NonNegativeFloat = 1.0, form: Literal['mean', 'sum'] = 'mean') -> None:

The registries of :mod:`mmkd.registry` wrap its ``__init__`` by :func:`checked`, so the settings are checked
whether an object is built from a config or directly. Conditions between settings remain in ``__init__``.
"""
import functools
import inspect
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from .errors import SettingError, nearest_names


@dataclass(frozen=True)
class Range:
    """The range of a number, in an annotation such as ``Annotated[float, Range(above=0)]``.

    Args:
        at_least: The lowest allowed value.
        at_most: The highest allowed value.
        above: A lower limit that is not allowed itself.
        below: An upper limit that is not allowed itself.
    """
    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.at_least) and math.isfinite(self.at_most):
            return f'from {self.at_least} to {self.at_most}'
        limits = {'of at least': self.at_least, 'above': self.above, 'of at most': self.at_most,
                  'below': self.below}
        return ' and '.join(f'{word} {limit}' for word, limit in limits.items() if math.isfinite(limit))


PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(at_least=0)]
PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]

Fraction = Annotated[float, Range(at_least=0, at_most=1)]
"""A share or a probability."""

Temperature = Annotated[float, Range(at_least=0.01, at_most=1000)]
"""The temperature of a softmax or a sigmoid; beyond this range, it overflows or is only rounding errors."""

Seed = Annotated[int, Range(at_least=0, below=2**32)]
"""A seed of NumPy's and PyTorch's generators."""

Target = TypeVar('Target', bound=Callable)


def checked(target: Target) -> Target:
    """Let a class or a function check its arguments against its signature.

    Args:
        target: A class, whose ``__init__`` is replaced, or a function.

    Returns:
        Callable: The class itself, or a function in place of the function. Their calls raise a
        :class:`~mmkd.errors.SettingError` for an argument that is unknown, missing, or not as annotated.
    """
    name = target.__name__
    function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        check_arguments(name, function, args, kwargs)
        return function(*args, **kwargs)

    if not isinstance(target, type):
        return wrapper  # type: ignore[return-value]
    target.__init__ = wrapper  # type: ignore[misc]
    return target


def check_arguments(name: str, function: Callable, args: Sequence, kwargs: Mapping[str, Any]) -> None:
    """Check the arguments of a call against the signature of the function.

    Args:
        name: What the function makes, for the error message.
        function: The function. Arguments without annotation, and what ``**kwargs`` collects, may be anything.
        args: The positional arguments.
        kwargs: The named arguments.

    Raises:
        SettingError: If a named argument is unknown, an argument is missing, or a value is not as annotated.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = {key: parameter for key, parameter in signature.parameters.items()
                  if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for key in kwargs:
        if key not in parameters and not takes_any:
            raise unknown_setting(name, key, [key for key in parameters if key != 'self'])
    arguments = signature.bind_partial(*args, **kwargs).arguments
    for key, parameter in parameters.items():
        if key in arguments:
            check_setting(name, key, arguments[key], parameter.annotation)
        elif parameter.default is parameter.empty and not takes_any:
            raise SettingError(name, key, 'is missing')


def unknown_setting(name: str, key: str, known: Sequence[str]) -> SettingError:
    """Return the error for a setting that does not exist, with the nearest or else all known names."""
    others = f'; the known names are {", ".join(known)}' if known else ''
    return SettingError(name, key, f'does not exist{nearest_names(key, known, cutoff=0.6) or others}')


def check_setting(name: str, key: str, value: Any, annotation: Any) -> None:
    """Check a value, and the values that it contains, against an annotation.

    Args:
        name: What the setting belongs to, for the error message.
        key: The name of the setting.
        value: The value.
        annotation: A type, possibly with :class:`Range`, a literal, or a union of these.

    Raises:
        SettingError: If the value is not as annotated.
    """
    is_union = get_origin(annotation) in (Union, UnionType)
    alternatives = get_args(annotation) if is_union else (annotation, )
    for alternative in alternatives:
        if _accepts(alternative, value):
            for inner_key, inner_value, inner_annotation in _items(alternative, value):
                check_setting(name, f'{key}.{inner_key}', inner_value, inner_annotation)
            return
    expected = [words for alternative in alternatives for words in _describe(alternative)]
    raise SettingError(name, key, f'must be {_either(expected)}, not {reprlib.repr(value)}')


def _accepts(annotation: Any, value: Any) -> bool:
    """Whether a value is as annotated, apart from what it contains."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = [limits for limits in arguments[1:] if isinstance(limits, Range)]
        return _accepts(arguments[0], value) and all(value in limits for limits in ranges)
    if origin is Literal:
        return isinstance(value, (str, NoneType)) and value in arguments
    if annotation is bool:
        return isinstance(value, (bool, np.bool_))
    if annotation in (int, float):
        number = numbers.Integral if annotation is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    kind = NoneType if annotation is None else origin or annotation
    if kind in (list, tuple, Sequence):
        return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not isinstance(kind, type) or kind in (Any, inspect.Parameter.empty):
        return True
    return isinstance(value, kind)


def _items(annotation: Any, value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield key, value and annotation of what a sequence or a mapping contains."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not arguments:  # a bare typing.Dict has an origin, too
        return
    if origin in (list, Sequence):
        for index, item in enumerate(value):
            yield index, item, arguments[0]
    elif origin in (dict, Mapping):
        for key, item in value.items():
            yield key, item, arguments[1]


def _describe(annotation: Any) -> list[str]:
    """Return what an annotation allows, in words; several words for several choices."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = ' '.join(str(limits) for limits in arguments[1:] if isinstance(limits, Range))
        words, = _describe(arguments[0])
        return [f'{words.replace("finite ", "") if limits.startswith("from") else words} {limits}']
    if origin is Literal:
        return [repr(choice) for choice in arguments]
    kind = origin or annotation
    known: dict[Any, str] = {
        bool: 'True or False', int: 'an integer', float: 'a finite number', str: 'a string',
        dict: 'a dict', Mapping: 'a dict', list: 'a list', tuple: 'a list', Sequence: 'a list',
        NoneType: 'None', None: 'None'}
    return [known.get(kind, getattr(kind, '__name__', str(kind)))]


def _either(choices: Iterable[str]) -> str:
    *others, last = dict.fromkeys(choices)
    return f'{", ".join(others)} or {last}' if others else last
