"""`sample` and `sample_arrays`: keywords in, images out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.files.settings import make, settings_of
from smidgen.models.base import Base
from smidgen.progress import counting_bar
from smidgen.sampling.config import FILES, SamplingConfig
from smidgen.sampling.draw import Drawing, prepare
from smidgen.sampling.own_settings import read_own_settings


def sample(
    base: Base,
    *,
    delta: Delta | str | Path | None = None,
    prompts: str | Sequence[str] | None = None,
    like: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[Image.Image]:
    """Images of the base, or of the base with `delta` (a Delta or its file).

    `prompts`, or `prompt`: one or several for a base that reads them; none: those of the classes
    that the delta was trained on. `settings`: those of SamplingConfig, such as classes, num_images,
    steps, sampler, guidance, seed, or image and mask. The images do not depend on `batch_size`, and
    the first n do not depend on `num_images`.

    `like`: a PNG that `smidgen sample` wrote, which is drawn again: its settings stand in for those
    that are not given. The files that it was drawn with must be given again.

    Raises: UsageError for an unknown class or setting or a number that makes no sense, a picture
        that cannot be used or drawn again, SmidgenError for a file that is no delta, a delta of
        another base, or a base that no host calls.
    """
    if like is not None:
        settings = _like(base, Path(like), {"delta": delta, **settings}, prompts is None)
    drawing = _drawing(base, delta, prompts, settings)
    with counting_bar("sampling", progress=progress) as report:
        return [
            Image.fromarray(image)
            for _, images in drawing.batches(report=report)
            for image in images
        ]


def sample_arrays(
    base: Base,
    *,
    delta: Delta | str | Path | None = None,
    prompts: str | Sequence[str] | None = None,
    **settings: Any,
) -> Iterator[tuple[range, NDArray[np.uint8], list[int]]]:
    """The images of `sample` batch by batch: (their numbers, uint8 (B, H, W, 3), class or prompt
    indices).

    Everything is checked at the call; the delta acts in the base only while a batch is drawn.

    Raises: as `sample`.
    """
    drawing = _drawing(base, delta, prompts, settings)
    return (
        (numbers, images, [drawing.label(number) for number in numbers])
        for numbers, images in drawing.batches()
    )


def _like(base: Base, path: Path, given: Mapping[str, Any], of_its_prompts: bool) -> dict[str, Any]:
    """The settings of the picture at this path, those `given` before them. A delta that is no file
    is taken at its word.
    """
    own = read_own_settings(path)
    own.check_base(base, path)
    files = {name: given.get(name) for name in ("delta", *FILES)}
    if isinstance(files["delta"], Delta):
        del files["delta"]
    own.check_files(files, path)
    known = settings_of(SamplingConfig)
    kept = {name: value for name, value in own.settings.items() if name in known}
    if not of_its_prompts:
        kept.pop("prompt", None)
    more = {name: value for name, value in given.items() if name != "delta"}
    return {**kept, "numbers": (own.number,), **more}


def _drawing(
    base: Base,
    delta: Delta | str | Path | None,
    prompts: str | Sequence[str] | None,
    settings: Mapping[str, Any],
) -> Drawing:
    given = [one for one in (prompts, settings.get("prompt")) if one is not None]
    if len(given) > 1:
        raise UsageError("prompt and prompts are one setting; give one of them")
    prompt = given[0] if given else ()
    prompt = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    config = make(SamplingConfig, {**settings, "prompt": prompt})
    if delta is not None and not isinstance(delta, Delta):
        delta = Delta.load(delta)
    return prepare(base, config, delta=delta)
