"""The names of all metrics and features, and what each metric needs.

Nothing heavy is imported here, so that the command line checks them before torch loads. How a
metric is computed is in metrics.py and its neighbours, how features are in features.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from smidgen.errors import UsageError, closest

FEATURES = ("glyphs", "inception", "dinov2", "clip-b32", "clip-l14")
PROMPT = "a photo of a {}"
INCEPTION_HEAD = "imagenet-2015"  # the head whose logits the inception score is defined on
AGREEMENT = "class_agreement"

CLIP = ("clip-b32", "clip-l14")

Needs = Literal["gaussian", "features", "logits", "cosine", "text"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a metric needs of an image set, and how to read its number.

    `needs`: mean and covariance, all features, the logits of heads, the mean direction of the
    features, or texts for the images. `extractors` lists those it is defined on, all if empty;
    `head` is one that the extractor must have. Either set must have `min_images`.
    """

    label: str
    needs: Needs
    higher_is_better: bool
    extractors: tuple[str, ...] = ()
    head: str | None = None
    min_images: int = 1

    def allows(self, extractor: str) -> bool:
        """Whether the metric is defined on the features of that name."""
        return not self.extractors or extractor in self.extractors


METRICS: Mapping[str, Metric] = {
    "fd": Metric(label="Frechet distance", needs="gaussian", higher_is_better=False),
    "kid": Metric(
        label="kernel distance (KID)", needs="features", higher_is_better=False, min_images=2
    ),
    "precision": Metric(
        label="precision (k = 3)", needs="features", higher_is_better=True, min_images=6
    ),
    "recall": Metric(label="recall (k = 3)", needs="features", higher_is_better=True, min_images=6),
    "density": Metric(
        label="density (k = 5)", needs="features", higher_is_better=True, min_images=6
    ),
    "coverage": Metric(
        label="coverage (k = 5)", needs="features", higher_is_better=True, min_images=6
    ),
    "inception_score": Metric(
        label="inception score",
        needs="logits",
        higher_is_better=True,
        extractors=("inception",),
        head=INCEPTION_HEAD,
    ),
    "cmmd": Metric(
        label="CMMD x 1000 (published on CLIP L/14)",
        needs="features",
        higher_is_better=False,
        extractors=CLIP,
    ),
    "class_agreement": Metric(label="class agreement", needs="logits", higher_is_better=True),
    "clip_i": Metric(label="CLIP-I", needs="cosine", higher_is_better=True, extractors=CLIP),
    "dino_i": Metric(
        label="DINO-I (DINOv2)", needs="cosine", higher_is_better=True, extractors=("dinov2",)
    ),
    "clip_t": Metric(label="CLIP-T", needs="text", higher_is_better=True, extractors=CLIP),
}


def check_names(
    features: str | Sequence[str],
    metrics: str | Sequence[str] | None,
    prompt: str = PROMPT,
    *,
    known: Sequence[str] = FEATURES,
) -> list[str]:
    """The names of the features, if they and those of the metrics make sense; no file is read.

    Raises: UsageError for unknown or repeated names, or a prompt without a place for the class.
    """
    names = split_names(features)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"features are {', '.join(names) or 'none'}; name each once, at least one")
    for name in split_names(metrics or ()):
        if name not in METRICS:
            raise UsageError(f'unknown metric "{name}"{closest(name, METRICS)}')
    if "{}" not in prompt:
        raise UsageError(f'the prompt "{prompt}" has no {{}} where the class name belongs')
    for name in names:
        if name not in known:
            raise UsageError(f'unknown features "{name}"; choose from: {", ".join(known)}')
    return names


def split_names(names: str | Sequence[str]) -> list[str]:
    """Names with commas between them, or several of them, as a list."""
    listed = [names] if isinstance(names, str) else names
    return [part.strip() for name in listed for part in name.split(",") if part.strip()]
