"""Checks of the losses' weights."""
import pytest

from mmkd.errors import MMKDError
from mmkd.registry import MODELS


@pytest.mark.parametrize(('kind', 'name'), [
    ('PKDLoss', 'weight'), ('SPLoss', 'weight'), ('FGDLoss', 'weight'), ('FGDLoss', 'foreground'),
    ('FGDLoss', 'background'), ('FGDLoss', 'attention'), ('FGDLoss', 'global_'),
    ('RKDLoss', 'distance_weight'), ('RKDLoss', 'angle_weight'), ('ABLoss', 'first_weight'),
    ('FSPLoss', 'first_weight'), ('DKDLoss', 'alpha'), ('DKDLoss', 'beta'), ('DISTLoss', 'beta'),
    ('DISTLoss', 'gamma')])
def test_losses_refuse_invalid_weights(kind, name):
    MODELS.build({'type': f'mmkd.{kind}', name: 0})
    for value in ('0.5', None, -0.5):
        expected = f'`{name}` of {kind} must be a finite number of at least 0, not {value!r}'
        with pytest.raises(MMKDError, match=expected):
            MODELS.build({'type': f'mmkd.{kind}', name: value})


def test_ab_refuses_negative_weights_of_levels():
    with pytest.raises(MMKDError, match='`level_weights.1` of ABLoss must be a finite number'):
        MODELS.build(dict(type='mmkd.ABLoss', level_weights=(1.0, -1.0)))
