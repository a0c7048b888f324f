"""DINOv2 ViT-L/14 as FD-DINOv2 uses it: its pixels and its class token.

B images of 224 x 224; D = 1024 features. Stein et al. 2023, "Exposing flaws of generative model
evaluation metrics" (arXiv 2306.04675).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from smidgen.evaluation.weights import PublishedModel

PUBLISHED = PublishedModel(
    repo_id="facebook/dinov2-large", patterns=("config.json", "model.safetensors")
)
IMAGE_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def prepare_dinov2(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 224 224"]:
    """The whole picture by Pillow's antialiased bicubic, rounded, as the paper's code resizes it.

    Not cropped: a picture that is no square is distorted.
    """
    size = (IMAGE_SIZE, IMAGE_SIZE)
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy())


def read_dinov2(network: nn.Module, images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
    """The class token after the final normalisation."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return network(pixel_values=(images.float() / 255 - mean) / std).pooler_output
