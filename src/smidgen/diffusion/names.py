"""The names of samplers and of guided channels; imports no torch."""

from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpm++", "euler"]
# what guidance leads away from
Guidance = Literal["classifier-free", "domain", "auto"]
Channels = Literal["all", "first-three"]
