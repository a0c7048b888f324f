"""Whole bases around tiny networks."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from smidgen.diffusion.process import Diffusion
from smidgen.diffusion.schedule import Schedule
from smidgen.hosts.host import find_host
from smidgen.models.base import Base, base_fingerprint
from smidgen.sizes import ImageSize, Sides
from tests.tiny.codecs import BoxCodec
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.networks import network

KNOWN_CLASSES = ("ant", "bee", "cat")
NEW_CLASSES = ("bee", "dog", "elk", "fox")  # more than before, one of them known
IMAGE_SIZE = 8


def base_of(denoiser: nn.Module, class_names: Sequence[str] = (), **facts: Any) -> Base:
    """A base of this network, with its own host and a codec without weights."""
    given = {
        "name": "tiny",
        "codec": BoxCodec(),
        "process": Diffusion(schedule=Schedule.linear()),
        "host": facts.pop("host", None) or find_host(denoiser),
        "fingerprint": "sketch1:none",
        "image_size": ImageSize.of(IMAGE_SIZE),
        "sides": Sides(multiple=4, step=4),
    }
    return Base(denoiser=denoiser, class_names=tuple(class_names), **(given | facts))


def tiny_base(seed: int = 0, **config: Any) -> Base:
    """A base that can be trained and sampled: 8-pixel images of three classes."""
    denoiser = network("dit", seed=seed, num_classes=len(KNOWN_CLASSES), **config)
    fingerprint = base_fingerprint(denoiser)
    return base_of(denoiser, KNOWN_CLASSES, name=f"tiny-{seed}", fingerprint=fingerprint)


def law_base(host: str, class_names: Sequence[str] = KNOWN_CLASSES) -> Base:
    """A base of this host in float64; without labels it has no class names."""
    tiny = TINY_HOSTS[host]
    names = class_names if tiny.labelled else ()
    return base_of(tiny.make(len(class_names)).double(), names, name=f"tiny-{host}")
