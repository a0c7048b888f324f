"""The reward of an image that is drawn in the step: how like its prompt, or reference pictures,
CLIP finds it. Beyond the paper.

The image is drawn as sampling draws it; gradients flow from CLIP through the codec and the last
steps of the sampler to the delta, and the steps before are taken as given: DRaFT-K (Clark et al.
2023, arXiv 2309.17400) and AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739). B images, K
labels, D dimensions of CLIP's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from smidgen.diffusion.guidance import ConditionalModel, guide
from smidgen.diffusion.process import Process
from smidgen.evaluation.clip import prepare_batch
from smidgen.evaluation.features import Extractor
from smidgen.sampling.config import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Reward:
    """`targets` (K, D), of length 1, are what images of each label are to be like, as `clip` sees
    them. Images are drawn as `sampling` says, whose sampler draws nothing on the way; `scale` is
    that of guidance, 1 where the network has it as an input.
    """

    process: Process
    sampling: SamplingConfig
    last_steps: int
    scale: float
    decode: Callable[[Tensor], Tensor]
    clip: Extractor
    targets: Tensor

    def losses(self, network: ConditionalModel, labels: Tensor, null: int, noise: Tensor) -> Tensor:
        """1 - the cosine of each image (B,) that begins from this noise and shows these labels (B,)
        with its target. `network` is (x, t, labels) -> what samplers read; `null`: of no class.
        """
        latents = self.draw(network, labels, null, noise)
        with torch.autocast(noise.device.type, enabled=False):  # as evaluation sees it
            seen = embed(self.clip, self.decode(latents))
        return 1 - (seen * self.targets[labels]).sum(dim=1)

    def draw(self, network: ConditionalModel, labels: Tensor, null: int, noise: Tensor) -> Tensor:
        """The latents (B, C, h, w); where gradients are on they flow through the last steps."""
        assert self.sampling.sampler is not None, "the configuration of a drawing is resolved"
        how = {"sampler": self.sampling.sampler, "steps": self.sampling.steps}
        begin = float(self.process.sampled_times(**how)[-self.last_steps])
        wanted = torch.is_grad_enabled()
        guided = guide(network, labels, null, self.scale)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            now = float(t[0])
            if now == begin:  # autocast keeps weights that it cast without their gradients
                torch.clear_autocast_cache()
            with torch.set_grad_enabled(wanted and now <= begin):
                return guided(x, t)

        generators = [torch.Generator() for _ in noise]  # of which these samplers draw nothing
        return self.process.sample(denoise, noise, generators, gradients=wanted, **how)


def embed(clip: Extractor, images: Tensor) -> Tensor:
    """Embeddings (B, D) of length 1 of images (B, 3, H, W) in [-1, 1], as evaluation has them of
    the files, with gradients.
    """
    pixels = prepare_batch((images.to(clip.device) + 1) * 127.5, clip.image_size)
    return functional.normalize(clip.run(pixels)[0], dim=1)
