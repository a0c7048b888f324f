"""Comparisons: a design, its runs, statistics that may be trusted, a report.

design.py, runs.py, execute.py and queue.py make the numbers; anova.py says what a table shows.
"""
