"""Experiments: trainings that can be interrupted, comparisons of methods, their reports, benchmarks of steps.

The trainings run ``mmkd train`` and ``mmkd test``.
"""
