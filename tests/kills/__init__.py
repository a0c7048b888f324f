"""Runs that are killed and started again by the same command must end bit-equal to whole ones.

test_kills.py kills three at points that are always the same, `python -m tests.kills` (`make kills`)
twenty at random moments, over the kinds of run in runs.py.
"""
