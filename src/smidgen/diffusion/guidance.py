"""Guidance as a wrapper around a network: away from what it says of another label, or from what
another network says.

Dimensions: b batch, c latent channels, d = c or 2c output channels, h and w latent rows and
columns.
"""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

from smidgen.diffusion.names import Channels
from smidgen.diffusion.sampler import Denoise
from smidgen.diffusion.schedule import Images, Indices, Output

# (x_t, timesteps, labels) -> output
ConditionalModel = Callable[[Tensor, Tensor, Tensor], Tensor]


def guide(
    model: ConditionalModel,
    y: Indices,
    null_label: int | Indices,
    scale: float,
    channels: Channels = "all",
    acts: Callable[[Tensor], bool] = lambda t: True,
) -> Denoise:
    """A denoiser whose noise is null + scale * (conditional - null) (Ho & Salimans 2022, eq. 6).

    scale 1 is the conditional network, 0 the unconditional one. At scale 1 the network is called
    once, else with the batch tiled to twice its size: conditional half first, null half second.
    `null_label` may be a label a sample. Where it does not act at the timesteps (b,) of a call
    (Kynkaanniemi et al. 2024, arXiv 2404.07724), the scale is 1.

    channels: "all" guides every latent channel; "first-three" the first three only, as the sampling
    code released with DiT does, by which its published figures were made. What is not guided (the
    other channels, the learned variance) is the conditional network's.

    Raises: ValueError if channels is neither of the two, or, when called, the batch is not of y's
        size.
    """
    if channels not in ("all", "first-three"):
        raise ValueError(f"guided channels {channels!r}: use all or first-three")

    def denoise(x: Images, t: Shaped[Tensor, " b"]) -> Output:
        if len(x) != len(y):
            raise ValueError(f"a batch of {len(x)} for {len(y)} labels: give one label a sample")
        labels = y.to(x.device)
        if scale == 1 or not acts(t):
            return model(x, t, labels)
        null = torch.as_tensor(null_label, device=x.device).expand_as(labels)
        pairs = torch.cat([labels, null.to(labels.dtype)])
        output = model(torch.cat([x, x]), torch.cat([t, t]), pairs)
        # The difference is small and scaled up: not in a network's reduced precision.
        conditional, null = output.to(x.dtype).chunk(2)
        num_guided = x.shape[1] if channels == "all" else 3
        unguided = conditional[:, num_guided:]
        conditional, null = conditional[:, :num_guided], null[:, :num_guided]
        return torch.cat([null + scale * (conditional - null), unguided], dim=1)

    return denoise
