"""Comparisons: a design, its runs, statistics that may be trusted, a report."""
