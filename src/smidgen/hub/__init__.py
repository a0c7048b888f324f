"""Deltas on the Hugging Face hub: pushed with a model card, pulled within limits, listed.

A repository of a delta is the folder of its run, as far as `config.LIMITS` names files.
"""
