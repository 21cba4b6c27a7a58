"""Checks of settings."""
import math

import pytest

from mmkd.errors import MMKDError, check_choice, check_weight


@pytest.mark.parametrize('value', [0, 1, 0.5])
def test_weights(value):
    check_weight(value)


@pytest.mark.parametrize('value', [-1, math.inf, math.nan, None, '1', True])
def test_what_is_no_weight(value):
    with pytest.raises(MMKDError, match='`alpha` must be a finite number of at least 0, not '):
        check_weight(value, 'alpha')


def test_choices():
    check_choice('kl', ('kl', 'mse'), 'teacher_loss')
    with pytest.raises(MMKDError, match=r"`teacher_loss` must be one of \('kl', 'mse'\), not 'l1'\."):
        check_choice('l1', ('kl', 'mse'), 'teacher_loss')
