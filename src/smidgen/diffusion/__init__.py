"""Diffusion as pure functions of tensors and callables: schedule, objective, samplers, guidance."""
