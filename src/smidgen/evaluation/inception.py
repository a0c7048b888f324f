"""The Inception network of the FID: its released TorchScript file, and two ways to its 299 pixels.

B images of H x W pixels; 2048 features after the last pooling; 1008 outputs. The file is a
conversion of TensorFlow's frozen graph of 2015-12-05, whose features every published FID uses.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from smidgen.evaluation.table import INCEPTION_HEAD as HEAD
from smidgen.evaluation.weights import PublishedFile

PUBLISHED = PublishedFile(
    name="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
IMAGE_SIZE = 299


def load_inception(content: bytes, device: torch.device) -> Any:
    """The network in the bytes of the released file, whose hash was checked.

    Its own call is `network(images, return_features, use_fp16, no_output_bias)` on raw pixels;
    below are its two stages, `layers` and `output`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old; the file is what is published
        return torch.jit.load(io.BytesIO(content), map_location=device).eval()


def read_inception(
    network: Any, images: Float[Tensor, "B 3 299 299"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K"]]:
    """Features, and logits without the output's bias; images in 0..255.

    The graph's softmax leaves the bias out where the Inception Score is computed (Salimans et al.
    2016, arXiv 1606.03498, as in its released code): so the logits here.
    """
    features = network.layers((images - 128) / 128).flatten(1).float()
    return features, features @ network.output.weight.float().T


def head_classes(network: Any) -> tuple[str, ...]:
    """A name for each output of the head, with a slash, which no class folder's name can have: the
    outputs are numbers in an order of their own and answer for no folder's classes.
    """
    return tuple(f"{HEAD}/{index}" for index in range(network.output.weight.shape[0]))


def prepare_clean(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "3 299 299"]:
    """The whole picture in 0..255 by Pillow's antialiased bicubic, each channel in floating point.

    Parmar et al. 2022, "On Aliased Resizing" (arXiv 2104.11222): not rounded, clipped to 0..255.
    """
    size = (IMAGE_SIZE, IMAGE_SIZE)
    channels = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))
        for channel in np.moveaxis(pixels, 2, 0).astype(np.float32)
    ]
    return torch.from_numpy(np.stack(channels).clip(0, 255))


def prepare_legacy(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "3 299 299"]:
    """The whole picture in 0..255 as the graph itself resizes raw pixels: bilinear, aliased.

    TensorFlow 1's `resize_bilinear`: output pixel i reads at i * H / 299, without the shift by half
    a pixel and without smoothing. Done here, picture by picture, so that sizes may differ.
    """
    values = torch.from_numpy(pixels.astype(np.float32))  # (H, W, 3)
    for axis in (0, 1):
        size = values.shape[axis]
        position = torch.arange(IMAGE_SIZE, dtype=torch.float64) * (size / IMAGE_SIZE)
        below = position.long().clamp_max(size - 1)
        above = (below + 1).clamp_max(size - 1)
        weight = (position - below).float().unsqueeze(1 - axis).unsqueeze(2)
        low, high = values.index_select(axis, below), values.index_select(axis, above)
        values = low + (high - low) * weight
    return values.permute(2, 0, 1).contiguous()


RESIZES: Mapping[str, Callable[[np.ndarray], Tensor]] = {
    "clean": prepare_clean,
    "legacy": prepare_legacy,
}
