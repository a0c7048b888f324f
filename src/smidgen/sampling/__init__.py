"""Sampling: one object says what is drawn and how, one function draws it."""
