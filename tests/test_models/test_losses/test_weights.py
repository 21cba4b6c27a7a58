"""Checks of the losses' weights."""
import math

import numpy as np
import pytest
import torch

from mmkd.errors import MMKDError, check_choice, check_weight
from mmkd.registry import MODELS


@pytest.mark.parametrize('value', ['0.5', None, True, -1, -1e-9, math.nan, math.inf, [1.0], torch.ones(1)])
def test_values_that_are_not_weights(value):
    with pytest.raises(MMKDError, match=r'`alpha` must be a finite number of at least 0, not '):
        check_weight(value, 'alpha')


def test_weights():
    for value in (0, 3, 2.5, np.float32(0.5), np.int64(2)):
        check_weight(value)


@pytest.mark.parametrize(('kind', 'name'), [
    ('PKDLoss', 'weight'), ('SPLoss', 'weight'), ('FGDLoss', 'weight'), ('FGDLoss', 'foreground'),
    ('FGDLoss', 'background'), ('FGDLoss', 'attention'), ('FGDLoss', 'global_'),
    ('RKDLoss', 'distance_weight'), ('RKDLoss', 'angle_weight'), ('ABLoss', 'first_weight'),
    ('FSPLoss', 'first_weight'), ('DKDLoss', 'alpha'), ('DKDLoss', 'beta'), ('DISTLoss', 'beta'),
    ('DISTLoss', 'gamma')])
def test_losses_refuse_invalid_weights(kind, name):
    MODELS.build({'type': f'mmkd.{kind}', name: 0})
    for value in ('0.5', None, -0.5):
        with pytest.raises(MMKDError, match=f'`{name}` must be a finite number of at least 0, not {value!r}'):
            MODELS.build({'type': f'mmkd.{kind}', name: value})


def test_ab_refuses_negative_weights_of_levels():
    with pytest.raises(MMKDError, match='`level_weights` must be a finite number'):
        MODELS.build(dict(type='mmkd.ABLoss', level_weights=(1.0, -1.0)))


def test_choices():
    check_choice('mean', ('mean', 'paper'), 'form')
    check_choice(None, (None, 'uniform'), 'sample_weight')
    with pytest.raises(MMKDError, match=r"`form` must be one of \('mean', 'paper'\), not 'sum'\."):
        check_choice('sum', ('mean', 'paper'), 'form')
