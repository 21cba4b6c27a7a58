"""Experiments: trainings that can be interrupted, comparisons of methods, their reports, benchmarks of steps.

The trainings run ``tools/train.py`` and ``tools/test.py`` of a checkout, which must surround this package.
"""
