"""The names of samplers and of guided channels; imports no torch."""

from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpm++", "euler"]
Channels = Literal["all", "first-three"]
