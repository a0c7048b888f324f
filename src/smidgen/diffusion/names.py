"""The names of samplers, of guidance and of restorations; imports no torch."""

from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpm++", "euler"]
# what guidance leads away from
Guidance = Literal["classifier-free", "domain", "auto"]
Channels = Literal["all", "first-three"]
# what sampling makes of a damaged image
Restoration = Literal["inpaint", "denoise", "upscale"]
