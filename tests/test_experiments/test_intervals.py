"""Statistics of paired comparisons."""
import numpy as np
import pytest

from mmkd.experiments.intervals import LEVEL, holm, paired_difference, smallest_detectable


def differences(*p_values):
    made = [paired_difference([0.2, 0.31, 0.4], [0.1, 0.2, 0.3]) for _ in p_values]
    for difference, p in zip(made, p_values, strict=True):
        difference['p'] = p
    return made


def test_holm_by_hand():
    """Four p-values, times 4, 3, 2 and 1 in their order; none is smaller than one before it."""
    made = differences(0.011, 0.04, 0.012, 0.03)
    holm(made)
    # 0.044; then 3 * 0.012 = 0.036, which must not be smaller; 2 * 0.03 = 0.06; 0.04, again not smaller.
    assert [each['corrected_p'] for each in made] == pytest.approx([0.044, 0.06, 0.044, 0.06])
    assert [each['corrected_verdict'] for each in made] == ['better', 'same', 'better', 'same']
    assert {each['verdict'] for each in made} == {'better'}


def test_holm_is_at_most_1_and_leaves_out_single_seeds():
    made = [*differences(0.6, 0.7), paired_difference([0.5], [0.4])]
    holm(made)
    assert [each['corrected_p'] for each in made] == [1.0, 1.0, None]
    assert [each['corrected_verdict'] for each in made] == ['same'] * 3


def test_a_p_value_agrees_with_its_interval():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 1.0, 2.0):
        difference = paired_difference(rng.normal(shift, 1, 5).tolist(), [0.0] * 5)
        low, high = difference['ci95']
        assert (difference['p'] < LEVEL) is (low > 0 or high < 0)
    assert paired_difference([0.75, 0.5], [0.5, 0.25])['p'] == 0.0
    assert paired_difference([0.5, 0.25], [0.5, 0.25])['p'] == 1.0


@pytest.mark.parametrize(('number', 'expected'), [(3, 3.264), (5, 1.682), (10, 0.996)])
def test_power_against_published_tables(number, expected):
    """The standardized effects of a paired t test, 80 %, two-sided 5 % (G*Power)."""
    assert smallest_detectable(1.0, number, 0.05) == pytest.approx(expected, abs=2e-3)
    assert smallest_detectable(0.02, number, 0.05) == pytest.approx(0.02 * expected, rel=1e-3)


def test_power_by_simulation():
    """At a corrected level, four of five experiments find a difference of this size."""
    level, number = LEVEL / 17, 10
    effect = smallest_detectable(1.0, number, level)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        difference = paired_difference(rng.normal(effect, 1.0, number).tolist(), [0.0] * number)
        found += difference['p'] <= level
    assert found / 1000 == pytest.approx(0.8, abs=0.04)


def test_more_comparisons_can_show_less():
    alone, among_many = differences(0.01), differences(0.01, 0.02, 0.03, 0.04)
    holm(alone)
    holm(among_many)
    assert among_many[0]['detectable'] > 1.5 * alone[0]['detectable'] > 0
