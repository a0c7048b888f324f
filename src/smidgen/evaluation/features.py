"""Feature extractors: a network, the pixels it wants, and the classes that its heads know.

B images, D feature dimensions, K classes of a head, S pixels a side, N texts. EXTRACTORS names them
all; their networks live beside this file, metrics in metrics.py, image files in reference.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from smidgen.errors import UsageError
from smidgen.evaluation.classifier import IMAGE_SIZE, NUM_FEATURES, GlyphClassifier
from smidgen.evaluation.clip import (
    GLYPHS,
    OPENAI_MEAN,
    OPENAI_STD,
    embed_texts,
    prepare_clip,
    read_clip,
    read_preprocessor,
)
from smidgen.evaluation.clip import PUBLISHED as CLIP
from smidgen.evaluation.dinov2 import IMAGE_SIZE as DINOV2_SIZE
from smidgen.evaluation.dinov2 import PUBLISHED as DINOV2
from smidgen.evaluation.dinov2 import prepare_dinov2, read_dinov2
from smidgen.evaluation.inception import HEAD, RESIZES, head_classes, load_inception, read_inception
from smidgen.evaluation.inception import IMAGE_SIZE as INCEPTION_SIZE
from smidgen.evaluation.inception import PUBLISHED as INCEPTION
from smidgen.evaluation.weights import model_folder, read_published
from smidgen.models.names import EMBEDDED
from smidgen.models.vision import (
    hash_weights,
    known_words,
    load_clip,
    load_clip_tokenizer,
    load_dinov2,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Extractor:
    """Features of images and, where it is a classifier, the logits of each of its heads.

    `prepare` maps one picture, uint8 (H, W, 3) of any size, to what the network takes, (3, S, S)
    with S = `image_size`; all resizing happens there, so that files and samples go the same way.
    `run` maps a stack of prepared pictures, (B, 3, S, S) on `device`, to float32 features (B, D)
    and a mapping of head to logits (B, K). `heads` names the classes of each head.

    `resize` names what `prepare` does and `sha256` is the hash of the weights: both belong in every
    cache key. `text` maps texts to L2-normalised embeddings (N, D); None where there are none.
    `domain` holds the names (or the words that they are made of) of what the network was trained on
    if it knows these only, and its features then say little of other pictures; None for a network
    of photographs of all kinds.
    """

    name: str
    dim: int
    image_size: int
    resize: str
    sha256: str
    heads: Mapping[str, tuple[str, ...]]
    prepare: Callable[[NDArray[np.uint8]], Tensor]
    run: Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]
    device: torch.device | str = "cpu"
    text: Callable[[Sequence[str]], Tensor] | None = None
    domain: tuple[str, ...] | None = None

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Features and logits of prepared images (B, 3, S, S), on whatever device they are."""
        # An accelerator's fast convolutions round to ten bits; distances are compared with others'.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.run(images.to(self.device))

    def head_for(self, classes: set[str]) -> str | None:
        """The head that knows all these classes (the smallest if several do), None without one."""
        knowing = [name for name, known in self.heads.items() if classes <= set(known)]
        return min(knowing, key=lambda name: len(self.heads[name])) if knowing else None


def glyphs(device: torch.device) -> Extractor:
    """The shipped classifier of letters: the trunk's last layer, and one head a script."""
    path = Path(str(files("smidgen.models") / "embedded" / "glyphs" / "classifier.safetensors"))
    model = GlyphClassifier.load(path).to(device)

    def run(images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        features = model.features(images.float().div(127.5).sub(1))
        return features, {script: head(features) for script, head in model.heads.items()}

    return Extractor(
        name="glyphs",
        dim=NUM_FEATURES,
        image_size=IMAGE_SIZE,
        resize="crop",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        heads=model.scripts,
        prepare=glyph_pixels,
        run=run,
        device=device,
        domain=tuple(dict.fromkeys(name for names in model.scripts.values() for name in names)),
    )


def glyph_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    """The centre square at 32 pixels a side, uint8 (3, 32, 32).

    Whole blocks of pixels are averaged where the side is a multiple of 32, as the glyphs of larger
    worlds are drawn; other sides are resampled as training data is (antialiased bicubic).
    """
    image = Image.fromarray(pixels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    whole = side % IMAGE_SIZE == 0
    resized = image.resize(
        (IMAGE_SIZE, IMAGE_SIZE),
        Image.Resampling.BOX if whole else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    return torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy())


def inception(
    device: torch.device, *, weights: Path | None = None, resize: str = "clean"
) -> Extractor:
    """Inception of 2015, the features of FID, KID and the Inception Score; see inception.py."""
    network = load_inception(read_published(INCEPTION, given=weights), device)

    def run(images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        features, logits = read_inception(network, images)
        return features, {HEAD: logits}

    return Extractor(
        name="inception",
        dim=network.output.weight.shape[1],
        image_size=INCEPTION_SIZE,
        resize=resize,
        sha256=INCEPTION.sha256,
        heads={HEAD: head_classes(network)},
        prepare=RESIZES[resize],
        run=run,
        device=device,
    )


def dinov2(device: torch.device, *, weights: Path | None = None) -> Extractor:
    """DINOv2 ViT-L/14, the features of FD-DINOv2 and DINO-I; see dinov2.py."""
    folder = model_folder(DINOV2, given=weights)
    sha256 = hash_weights(folder)
    network: Any = load_dinov2(folder, DINOV2_SIZE, device)
    return Extractor(
        name="dinov2",
        dim=network.config.hidden_size,
        image_size=DINOV2_SIZE,
        resize="squash",
        sha256=sha256,
        heads={},
        prepare=prepare_dinov2,
        run=lambda images: (read_dinov2(network, images), {}),
        device=device,
    )


def clip(name: str, device: torch.device, *, weights: Path | None = None) -> Extractor:
    """A released CLIP, the features of CMMD, CLIP-I and CLIP-T; see clip.py."""
    return _clip(name, model_folder(CLIP[name], given=weights), device, OPENAI_MEAN, OPENAI_STD)


def clip_glyphs(device: torch.device) -> Extractor:
    """The CLIP of letters and pictographs that ships, for the base `glyphs-text`."""
    folder = EMBEDDED / GLYPHS
    pixels = read_preprocessor(folder)
    read = _clip(GLYPHS, folder, device, pixels.image_mean, pixels.image_std)
    return replace(read, domain=known_words(folder))


def _clip(
    name: str,
    folder: Path,
    device: torch.device,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Extractor:
    """The embeddings of images and texts by the CLIPModel of a folder.

    The tokenizer is read with the first texts, so that a folder without one serves images.
    """
    sha256 = hash_weights(folder)
    network: Any = load_clip(folder, device)
    size = network.config.vision_config.image_size
    max_tokens = network.config.text_config.max_position_embeddings

    tokenizer = cache(lambda: load_clip_tokenizer(folder, max_tokens))

    def text(texts: Sequence[str]) -> Tensor:
        return embed_texts(network, tokenizer(), texts, device)

    return Extractor(
        name=name,
        dim=network.config.projection_dim,
        image_size=size,
        resize="clip",
        sha256=sha256,
        heads={},
        prepare=partial(prepare_clip, size=size),
        run=lambda images: (read_clip(network, images, mean, std), {}),
        device=device,
        text=text,
    )


EXTRACTORS: Mapping[str, Callable[..., Extractor]] = {
    "glyphs": glyphs,
    "inception": inception,
    "dinov2": dinov2,
    "clip-b32": partial(clip, "clip-b32"),
    "clip-l14": partial(clip, "clip-l14"),
    GLYPHS: clip_glyphs,
}
PUBLISHED = ("inception", "dinov2", "clip-b32", "clip-l14")  # not shipped: these take `weights`
RESIZED = {
    "inception": tuple(RESIZES)
}  # where there is a choice of `resize`, the first the default


def load_extractor(
    name: str,
    device: torch.device | str = "cpu",
    *,
    weights: str | Path | None = None,
    resize: str | None = None,
) -> Extractor:
    """The extractor of that name, its network on `device`.

    `weights` is the file, or the folder of a transformers model, or a folder that holds these under
    their published names; None: the folder $SMIDGEN_WEIGHTS, the cache, other programs' places, the
    network. `resize` is for "inception" only: "clean" (None) or "legacy".

    Raises: UsageError for an unknown name, or an option that these features do not have;
        SmidgenError for weights that are not there, damaged, or others than expected.
    """
    if name not in EXTRACTORS:
        raise UsageError(f'unknown features "{name}"; choose from: {", ".join(EXTRACTORS)}')
    options: dict[str, Any] = {}
    if weights is not None:
        if name not in PUBLISHED:
            raise UsageError(
                f'features "{name}" ship with smidgen and take no weights; leave it out'
            )
        options["weights"] = Path(weights)
    if resize is not None:
        if resize not in RESIZED.get(name, ()):
            known = (
                " or ".join(RESIZED.get(name, ())) or "none, there is one way only; leave it out"
            )
            raise UsageError(f'features "{name}" have no resize "{resize}"; expected {known}')
        options["resize"] = resize
    return EXTRACTORS[name](torch.device(device), **options)
