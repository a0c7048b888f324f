"""Diffusion as pure functions of tensors and callables: schedule, objective, samplers, guidance.

Imports nothing of the package.
"""
