"""Feature extractors: a network, the pixels it wants, and the classes that its heads know.

B images, D feature dimensions, K classes of a head. EXTRACTORS names them all; metrics live in
metrics.py and reading of image files in reference.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from smidgen.data.images import Mode
from smidgen.errors import UsageError
from smidgen.evaluation.classifier import IMAGE_SIZE, NUM_FEATURES, GlyphClassifier


@dataclass(frozen=True, kw_only=True, eq=False)
class Extractor:
    """Features of images and, where it is a classifier, the logits of each of its heads.

    `run` maps images (B, 3, S, S) in [-1, 1], S = `image_size`, to features (B, D) and a mapping of
    head to logits (B, K). `heads` names the classes of each head. Image files are brought to S by
    `resize`: the centre square or the whole picture. `sha256` is the hash of the weights' file.
    """

    name: str
    dim: int
    image_size: int
    resize: Mode
    sha256: str
    heads: Mapping[str, tuple[str, ...]]
    run: Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Features and logits of uint8 images (B, 3, S, S)."""
        return self.run(images.to(self.device).float().div(127.5).sub(1))

    def head_for(self, classes: set[str]) -> str | None:
        """The head that knows all these classes (the smallest if several do), None without one."""
        knowing = [name for name, known in self.heads.items() if classes <= set(known)]
        return min(knowing, key=lambda name: len(self.heads[name])) if knowing else None


def glyphs(device: torch.device) -> Extractor:
    """The shipped classifier of Latin, Greek and Cyrillic letters: the trunk's last layer."""
    path = Path(str(files("smidgen.models") / "embedded" / "glyphs" / "classifier.safetensors"))
    model = GlyphClassifier.load(path).to(device)

    def run(images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        features = model.features(images)
        return features, {script: head(features) for script, head in model.heads.items()}

    return Extractor(
        name="glyphs",
        dim=NUM_FEATURES,
        image_size=IMAGE_SIZE,
        resize="crop",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        heads=model.scripts,
        run=run,
        device=device,
    )


EXTRACTORS: Mapping[str, Callable[[torch.device], Extractor]] = {"glyphs": glyphs}


def load_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of that name, its network on `device`.

    Raises: UsageError for an unknown name, listing the known ones.
    """
    if name not in EXTRACTORS:
        raise UsageError(f'unknown features "{name}"; choose from: {", ".join(EXTRACTORS)}')
    return EXTRACTORS[name](torch.device(device))
