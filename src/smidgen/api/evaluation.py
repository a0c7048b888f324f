"""`evaluate`: a run, a delta or a folder of images against a reference.

Of a run and a delta the samples go straight from the sampler to the metrics: none is held and none
written. With several processes (torchrun) each draws and measures its part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from smidgen.core.delta import Delta, read_header
from smidgen.data.folder import Progress
from smidgen.errors import UsageError
from smidgen.evaluation import run
from smidgen.evaluation.captions import captions_of
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.personalisation import measure_personalisation
from smidgen.files.reading import sha256_of
from smidgen.files.run_files import DELTA, RECIPE
from smidgen.files.settings import make, settings_of
from smidgen.files.toml import NONE
from smidgen.models.base import Base
from smidgen.models.calling import DTYPES, device_of
from smidgen.models.labels import class_names
from smidgen.models.names import BasePrecision
from smidgen.models.positions import Positions, size_and_positions
from smidgen.models.pretrained import load_base
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.config import MEASURED_IMAGES, SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.sizes import ImageSize
from smidgen.training.recipe import read_recipe

Kind = Literal["run", "delta", "images"]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The base with which the samples of a run or a delta are drawn; None: that of the run's
    recipe, or of the delta's header, as it was loaded then.
    """

    base: Base | str | Path | None = None
    codec: str | Path | None = None
    image_size: ImageSize | int | str | None = None
    positions: Positions | None = None
    frequency_shift: float | None = None
    base_precision: BasePrecision | None = None
    offload: bool = False

    def load(
        self, source: Path, delta: Delta, config: EvaluationConfig, precision: str | None
    ) -> Base:
        """The base itself, from what is given and what the run's recipe says."""
        if isinstance(self.base, Base):
            for name, value in vars(self).items():
                if name != "base" and value is not None and value is not False:
                    raise UsageError(
                        f"{name} is for a base that is loaded here; give it to load_base, or "
                        "leave it out"
                    )
            return self.base
        return load_base(**self.asked(source, delta, config, precision))

    def asked(
        self, source: Path, delta: Delta, config: EvaluationConfig, precision: str | None
    ) -> dict[str, Any]:
        """What `load_base` is asked for, where no base is given that is loaded already."""
        recipe = read_recipe(source if source.is_dir() else source.parent) or {}
        given: dict[str, Any] = {
            "codec": self.codec,
            "frequency_shift": self.frequency_shift,
            "base_precision": self.base_precision,
        }
        if self.base is None:  # then all that goes with it is the recipe's too
            given = {name: recipe.get(name) if v is None else v for name, v in given.items()}
            if self.base_precision is None and precision in ("bf16", "fp16"):
                # of a training in float32: nothing is kept wider than what is computed in now
                recipe_has = given["base_precision"]
                given["base_precision"] = None if recipe_has == "fp32" else recipe_has
        size, positions = size_and_positions(delta)
        return {
            "name": self.base or recipe.get("base") or delta.provenance.base,
            "device": device_of(config.device),
            "dtype": DTYPES[precision or "fp32"],
            "image_size": self.image_size or recipe.get("image_size") or size,
            "positions": self.positions or positions,
            "offload": self.offload,
            **given,
        }


def evaluate(
    source: str | Path,
    reference: str | Path | None = None,
    *,
    base: Base | str | Path | None = None,
    codec: str | Path | None = None,
    image_size: ImageSize | int | str | None = None,
    positions: Positions | None = None,
    frequency_shift: float | None = None,
    base_precision: BasePrecision | None = None,
    offload: bool = False,
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
    **settings: Any,
) -> dict[str, Any]:
    """The metrics of a run's folder, a delta's file or a folder of images, as result.json has them.

    Of a run and a delta, samples are drawn as `sampling` says (None: 10,000 as its other defaults
    do), of the classes that it was trained on, in their prompts if the base reads such; of a delta
    that knows no classes, one that was trained on captions, by those of the reference. `base`
    None: the one that the run's recipe or the delta's header names; `codec`, `image_size`,
    `positions`, `frequency_shift` and `base_precision` are as in `load_base`, None: as the recipe
    has them; `offload` is as there too. Of a personalisation the subject's prompts are drawn, four
    images of each (personalisation.py in smidgen.evaluation), and `reference` None means the
    pictures that it was trained on. `settings`: those of EvaluationConfig (features, metrics,
    batch_size, cache_dir, weights, resize, layout, split, prompt), of which `batch_size` counts
    where images are drawn only without `sampling`, which has one of its own; `reference` and the
    result are as in `smidgen.evaluation.run.evaluate`; progress(done, total) is called as images
    are read or drawn.

    Raises: UsageError for a setting that makes no sense, or sampling asked of images that are drawn
        already; SmidgenError for content that cannot be used, a delta of another base, or a
        reference without a class that is drawn.
    """
    source = Path(source)
    drawn = Drawn(
        base=base,
        codec=codec,
        image_size=image_size,
        positions=positions,
        frequency_shift=frequency_shift,
        base_precision=base_precision,
        offload=offload,
    )
    if source_kind(source) == "images":
        for name, value in {**vars(drawn), "sampling": sampling}.items():
            if value is not None and value is not False:  # but a shift of 0
                raise UsageError(
                    f"{source} holds images: {name} is for a run or a delta; leave it out"
                )
    known = settings_of(EvaluationConfig)
    for name in settings_of(SamplingConfig):
        if name in settings and name not in known:
            raise UsageError(
                f"{name} is about drawing samples; give sampling=SamplingConfig({name}=...)"
            )
    if sampling is not None and sampling.numbers:
        raise UsageError("numbers draws some of the images, and all are measured; leave it out")
    config = make(EvaluationConfig, {**settings, "device": str(device)})
    sampling = sampling or SamplingConfig(batch_size=config.batch_size)
    return measure(source, reference, config, drawn, sampling, progress)


def measure(
    source: Path,
    reference: str | Path | None,
    config: EvaluationConfig,
    drawn: Drawn,
    sampling: SamplingConfig,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`evaluate` with its settings as objects; the last but one matter to a run or a delta only."""
    if source_kind(source) == "images":
        if reference is None:
            raise UsageError(f"{source} holds images: give a reference, a folder of real images")
        return run.evaluate(source, reference, config, progress)
    if reference is None:
        reference, config = own_reference(source, config)
    run.check_reference(Path(reference), config)
    path = delta_of(source)
    delta = Delta.load(path)  # before the base, which may take long
    base = drawn.load(source, delta, config, sampling.precision)
    facts = {"delta_sha256": sha256_of(path)}
    if DREAMBOOTH in delta.provenance.training:
        return measure_personalisation(
            base,
            delta,
            reference,
            config,
            sampling,
            name=str(source),
            facts=facts,
            progress=progress,
        )
    count = sampling.num_images or MEASURED_IMAGES
    sampling = replace(sampling, num_images=count)
    of_classes = bool(class_names(base, delta))
    if not of_classes and not sampling.prompt:
        captions = captions_of(reference, config, count)
        sampling = replace(sampling, prompt=captions)
        facts |= {"prompt": f"{len(captions):,} captions of the reference"}
    return run.measure_drawing(
        prepare(base, sampling, delta=delta),
        reference,
        config,
        name=str(source),
        facts=facts,
        of_classes=of_classes,
        progress=progress,
    )


def own_reference(source: Path, config: EvaluationConfig) -> tuple[Path, EvaluationConfig]:
    """The pictures of the subject that a run or a delta was trained on, by the run's recipe, and
    how they are read.

    Raises: UsageError if it is no personalisation, or no recipe says which they were.
    """
    path = delta_of(source)
    if DREAMBOOTH not in read_header(path).get("training", {}):
        raise UsageError(
            f"{source} is no personalisation: give a reference, a folder of real images"
        )
    recipe = read_recipe(path.parent) or {}
    if not isinstance(recipe.get("data"), str):
        raise UsageError(
            f"no {RECIPE} beside {path} says what it was trained on: give the subject's pictures "
            "as the reference"
        )
    read = {name: recipe.get(name, NONE) for name in ("layout", "split")}
    given = {name: value for name, value in read.items() if value != NONE}
    return Path(recipe["data"]), replace(config, **given)


def delta_of(source: Path) -> Path:
    """The delta's file of a run's folder, or the file itself."""
    return source / DELTA if source.is_dir() else source


def delta_file(source: Path) -> Path:
    """The delta's file of a run, or the file itself. Raises: UsageError for what is neither."""
    if source_kind(source) == "images":
        raise UsageError(f"{source} holds images; give a run's folder or a delta's file")
    return delta_of(source)


def source_kind(source: Path) -> Kind:
    """What there is to evaluate: a run (a folder with a recipe), a delta's file, or images.

    Raises: UsageError if it is nothing of these, or the run has not left its delta.
    """
    if source.is_dir():
        if (source / DELTA).is_file():
            return "run"
        if (source / RECIPE).is_file():
            raise UsageError(f"{source} is a run without {DELTA}: train it to its end first")
        return "images"
    if not source.exists():
        raise UsageError(f"no such file or folder: {source}")
    if source.suffix == ".npz":
        return "images"
    if source.suffix == ".safetensors":
        return "delta"
    raise UsageError(f"{source} is no run, no delta ({DELTA}), no folder of images and no .npz")
