"""Statistics of paired comparisons: intervals, Holm's correction, and power."""
import statistics
from collections.abc import Collection, Sequence
from typing import TypedDict

from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student_t

LEVEL = 0.05
"""The probability of a false statement: of each interval, and of all corrected statements of a table."""
POWER = 0.8
"""The probability with which a difference that counts as detectable is found."""


class Spread(TypedDict):
    """A figure over seeds: mean, standard deviation (n - 1; ``None`` for one seed), and every value."""

    mean: float
    std: float | None
    per_seed: list[float]


class PairedDifference(Spread):
    """The differences of two methods with equal seeds, and what they say.

    ``ci95`` is Student's t interval and ``p`` the p-value of the two-sided t test; the verdict is ``'same'``
    when the interval includes zero. ``corrected_p`` and ``corrected_verdict`` take all comparisons of a table
    into account, and ``detectable`` is the smallest difference that this comparison could have shown. For one
    seed, the figures are ``None``.
    """

    ci95: list[float] | None
    p: float | None
    verdict: str
    corrected_p: float | None
    corrected_verdict: str
    detectable: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the standard deviation of a figure over seeds."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.mean(values), std=std, per_seed=list(values))


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compare two methods seed by seed; the only comparison until :func:`holm` knows of others.

    Args:
        values: Scores of a method.
        reference: Scores of another method with the same seeds.
    """
    difference = spread([value - other for value, other in zip(values, reference, strict=True)])
    mean, std, number = difference['mean'], difference['std'], len(values)
    if std is None:
        return PairedDifference(**difference, ci95=None, p=None, verdict='same', corrected_p=None,
                                corrected_verdict='same', detectable=None)
    error = std / number**0.5
    half = float(student_t.ppf(1 - LEVEL / 2, number - 1)) * error
    low, high = mean - half, mean + half
    verdict = 'better' if low > 0 else 'worse' if high < 0 else 'same'
    statistic = abs(mean) / error if error else float('inf') if mean else 0.0
    p = float(2 * student_t.sf(statistic, number - 1))
    return PairedDifference(
        **difference, ci95=[low, high], p=p, verdict=verdict, corrected_p=p, corrected_verdict=verdict,
        detectable=smallest_detectable(std, number, LEVEL))


def holm(differences: Collection[PairedDifference]) -> None:
    """Correct the statements of all comparisons of a table together (Holm, 1979); changes them in place.

    The smallest of m p-values is multiplied by m, the next one by m - 1, and so on, and none becomes smaller
    than one before it. The probability of one false statement or more is then at most :data:`LEVEL`.

    ``detectable`` is set for the level that the smallest p-value has to reach, ``LEVEL`` / m.

    Args:
        differences: The comparisons; those of one seed have no p-value and do not count.
    """
    tested = sorted((each for each in differences if each['p'] is not None), key=lambda each: each['p'] or 0)
    corrected = 0.0
    for index, difference in enumerate(tested):
        corrected = max(corrected, min(1.0, (len(tested) - index) * (difference['p'] or 0)))
        difference['corrected_p'] = corrected
        difference['corrected_verdict'] = difference['verdict'] if corrected <= LEVEL else 'same'
        difference['detectable'] = smallest_detectable(
            difference['std'] or 0, len(difference['per_seed']), LEVEL / len(tested))


def smallest_detectable(std: float, number: int, level: float) -> float:
    """Return the smallest true difference that a paired t test finds with a probability of :data:`POWER`.

    Args:
        std: Standard deviation of the paired differences.
        number: Number of pairs, at least 2.
        level: Level of the two-sided test.

    Returns:
        float: The difference, in the unit of ``std``.
    """
    freedom = number - 1
    critical = student_t.ppf(1 - level / 2, freedom)

    def missing(noncentrality: float) -> float:
        # The other tail is left out: at this power, it is as good as empty.
        return float(nct.sf(critical, freedom, noncentrality)) - POWER

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0, high)) * std / number**0.5
