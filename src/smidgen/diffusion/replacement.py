"""What is known of an image put in the place of what was drawn, between two sampling steps.

b images, c latent channels, h and w latent rows and columns. `y` is the known image with the noise
of the step, as the process has it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from smidgen.diffusion.schedule import Images

Mask = Float[Tensor, "#b 1 h w"]


def outside(x: Images, y: Images, mask: Mask) -> Images:
    """x where the mask is 1 and y where it is 0 (Song et al. 2021, arXiv 2011.13456, appendix I.2;
    Lugmayr et al. 2022, arXiv 2201.09865, equation 8).
    """
    return mask * x + (1 - mask) * y


def low_frequencies(x: Images, factor: int) -> Images:
    """Each square of factor x factor latent pixels as its mean: of linear low-pass filters one that
    changes nothing the second time. The sides are multiples of `factor`.
    """
    means = functional.avg_pool2d(x, factor)
    return means.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def refined(x: Images, y: Images, factor: int) -> Images:
    """x with the low frequencies of y (ILVR; Choi et al. 2021, arXiv 2108.02938, equation 8)."""
    return x + low_frequencies(y - x, factor)
