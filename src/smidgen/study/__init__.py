"""Comparisons: a design, its runs, what they show, a report."""
