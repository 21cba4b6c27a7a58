"""Wrong settings of everything that is registered in mmkd, generated from the signatures.

The rules for what is wrong are written down here independently of :mod:`mmkd.settings`.
"""
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop

from mmkd import registry
from mmkd.errors import MMKDError, SettingError
from mmkd.models.teachers import Teacher
from mmkd.settings import Range, check_setting

REGISTRIES = (registry.MODELS, registry.HOOKS, registry.DATASETS, registry.DATA_SAMPLERS,
              registry.OPTIM_WRAPPER_CONSTRUCTORS)

REQUIRED = dict(loss=dict(type='mmkd.PKDLoss'), dataset={}, student={}, methods={}, depth=8, width=1,
                optim_wrapper_cfg={}, config='teacher.py')
"""Settings without a default; nothing is built from them, because another setting is wrong."""

SAMPLES: dict[type, Any] = {float: 7, bool: True, str: 'no such choice', list: [7.5], dict: {7: 7.5},
                            NoneType: None}
"""A value of every type that a config can express."""

ACCEPTS = {float: (float, ), int: (float, ), bool: (bool, ), str: (str, ), list: (list, ), Sequence: (list, ),
           dict: (dict, ), Mapping: (dict, ), NoneType: (NoneType, ), Literal: ()}


def registered() -> dict[str, Any]:
    """Return all classes and functions whose settings are checked, by name."""
    found = {'Teacher': Teacher}
    for each in REGISTRIES:
        each.import_from_location()
        found.update(each.module_dict)
    return found


def alternatives_of(annotation: Any) -> tuple:
    """Return the members of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation, )


def wrong_values(annotation: Any) -> list[Any]:
    """Return values that a setting with an annotation must refuse."""
    accepted: set[type] = set()
    wrong: list[Any] = []
    for alternative in alternatives_of(annotation):
        limits = None
        if get_origin(alternative) is Annotated:
            alternative, limits = get_args(alternative)
        kind = get_origin(alternative) or alternative
        if kind not in ACCEPTS:  # such as Any
            return []
        accepted |= set(ACCEPTS[kind])
        if kind in (int, float):
            wrong += [math.nan, math.inf, -math.inf, np.float32('nan'), torch.tensor(7.0)]
            wrong += [0.5, 7.0] if kind is int else []
        if kind is bool:
            wrong += [0, 1, 'False', 'true']
        if kind is Literal:
            wrong += [choice[:-1] for choice in get_args(alternative)]
        if limits is not None:
            wrong += out_of(limits)
        if kind is Sequence:
            wrong.append([object()])
    return wrong + [value for kind, value in SAMPLES.items() if kind not in accepted]


def out_of(limits: Range) -> list[float]:
    """Return numbers outside of a range."""
    beside = [limits.at_least - 1, limits.at_most + 1, limits.above, limits.above - 1, limits.below]
    return [value for value in beside if math.isfinite(value)]


def refusal(name: str, settings: dict) -> str:
    """Build something with wrong settings, and return the sentence that refuses them."""
    target = registered()[name]
    known = inspect.signature(target).parameters
    required = {key: value for key, value in REQUIRED.items()
                if key in known and known[key].default is inspect.Parameter.empty}
    with pytest.raises(SettingError) as error:
        target(**{**required, **settings})
    sentence = str(error.value)
    assert '\n' not in sentence and sentence.endswith('.') and len(sentence) < 300
    return sentence


@pytest.mark.parametrize('name', registered())
def test_wrong_values(name, record_property):
    for key, parameter in inspect.signature(registered()[name]).parameters.items():
        for value in wrong_values(parameter.annotation):
            record_property('bad input', f'{name}({key}={value!r})')
            sentence = refusal(name, {key: value})
            assert re.match(rf'`{key}(\.[07])?` of {name} must be .*, not .*\.$', sentence), (value, sentence)
            record_property('one sentence', sentence)


@pytest.mark.parametrize('name', registered())
def test_misspelled_settings(name, record_property):
    parameters = inspect.signature(registered()[name]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        pytest.skip('another class takes some of its settings')
    for key in (key for key in parameters if len(key) > 3):
        misspelled = key[:len(key) // 2] + key[len(key) // 2 + 1:]
        record_property('bad input', f'{name}({misspelled}=1)')
        sentence = refusal(name, {misspelled: 1})
        assert sentence.startswith(f'`{misspelled}` of {name} does not exist; the nearest names are ')
        assert repr(key) in sentence
        record_property('one sentence', sentence)


def test_every_numeric_setting_has_a_range():
    # A number without a range is probably one that somebody forgot; these may be anything.
    free = {('TeacherCheckHook', 'minimum'), ('ViewSampler', 'seed')}
    plain = {(name, key) for name, target in registered().items()
             for key, parameter in inspect.signature(target).parameters.items()
             if {int, float} & set(alternatives_of(parameter.annotation))}
    assert plain == free


def test_missing_setting():
    for name, key in (('FeatureDistill', 'loss'), ('CRDWideResNet', 'depth'), ('ReplayedDataset', 'dataset'),
                      ('Teacher', 'config')):
        with pytest.raises(MMKDError, match=f'`{key}` of {name} is missing.'):
            registered()[name]()


@pytest.mark.parametrize(('value', 'annotation'), [
    (np.float32(0.5), float), (np.int64(3), float), (3, float), (np.int64(3), int), (np.bool_(True), bool),
    (None, int | None), ([1, 2], Sequence[int]), ((1, 2), Sequence[int]), ('a', Literal['a', 'b']),
    ({}, dict), (dict(a=1), Mapping[str, int]), (1.0, Annotated[float, Range(at_most=1)]), (object(), Any)])
def test_right_value(value, annotation):
    check_setting('Class', 'key', value, annotation)


def test_annotations_of_mmengine():
    annotation = inspect.signature(EpochBasedTrainLoop).parameters['dataloader'].annotation
    assert any(get_origin(part) is dict and not get_args(part) for part in get_args(annotation))
    check_setting('Class', 'dataloader', dict(batch_size=2), annotation)


@pytest.mark.parametrize(('annotation', 'words'), [
    (float, 'a finite number'), (int, 'an integer'), (bool, 'True or False'),
    (Annotated[float, Range(above=0)], 'a finite number above 0'),
    (Annotated[int, Range(at_least=1, below=9)], 'an integer of at least 1 and below 9'),
    (Annotated[float, Range(at_least=0, at_most=1)], 'a number from 0 to 1'),
    (Literal['a', 'b', 'c'] | None, "'a', 'b', 'c' or None"),
    (str | Sequence[str] | Mapping[str, str], 'a string, a list or a dict')])
def test_words(annotation, words):
    with pytest.raises(SettingError) as error:
        check_setting('Class', 'key', object, annotation)
    assert str(error.value) == f"`key` of Class must be {words}, not <class 'object'>."


def test_long_values_are_shortened():
    with pytest.raises(SettingError) as error:
        check_setting('Class', 'key', {number: 'x' * 1000 for number in range(1000)}, bool)
    assert len(str(error.value)) < 200


def test_subclasses_check_their_own_settings():

    @registry.MODELS.register_module(name='SomeoneElsesLoss', force=True)
    class SomeoneElsesLoss(registered()['CWDLoss']):

        def __init__(self, margin: Annotated[float, Range(above=0)] = 1.0, **settings) -> None:
            super().__init__(**settings)
            self.margin = margin

    assert SomeoneElsesLoss(margin=2, temperature=3).temperature == 3
    with pytest.raises(SettingError, match='`margin` of SomeoneElsesLoss must be a finite number above 0'):
        SomeoneElsesLoss(margin=0)
    with pytest.raises(SettingError, match='`temperature` of CWDLoss must be'):
        registry.MODELS.build(dict(type='mmkd.SomeoneElsesLoss', temperature=0))
    registry.MODELS.module_dict.pop('SomeoneElsesLoss')
