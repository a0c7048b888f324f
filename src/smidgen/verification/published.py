"""The numbers that authors published of their bases, and whether this base has them here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from smidgen.data.folder import Progress
from smidgen.diffusion.names import Channels
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.run import measure_drawing
from smidgen.models.base import Base
from smidgen.models.dit import DiT, preset
from smidgen.sampling.config import MeasuredSampling
from smidgen.sampling.draw import prepare
from smidgen.verification.check import Check
from smidgen.verification.config import VerifyConfig

SHORT = 10_000  # images of the short form
ERRORS = 3  # standard errors that what is measured may be off
LEAST = 4  # images a dimension of the features: with fewer the bias is not of order 1 / N alone


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published Frechet distance with its protocol.

    `values` are those that its authors give, as `source` says; `rounded` is half of their last
    digit; `reference` None: what `ask` names must be given.
    """

    of: str
    source: str
    values: tuple[float, ...]
    num_images: int
    steps: int
    guidance: float
    guidance_channels: Channels
    features: Literal["glyphs", "inception"]
    resize: Literal["legacy"] | None
    ask: str
    reference: str | None = None
    rounded: float = 0.005


ADM = "https://github.com/openai/guided-diffusion/tree/main/evaluations"
DIT_256 = Published(
    of="DiT-XL/2 at 256 pixels",
    source="Peebles & Xie 2022 (arXiv 2212.09748): 2.27; the README of facebookresearch/DiT: 2.21 "
    "with the released PyTorch weights in FP32",
    values=(2.27, 2.21),
    num_images=50_000,
    steps=250,
    guidance=1.5,
    guidance_channels="first-three",
    features="inception",
    resize="legacy",
    ask=f"VIRTUAL_imagenet256_labeled.npz of {ADM}",
)
DIT_512 = replace(
    DIT_256,
    of="DiT-XL/2 at 512 pixels",
    source="Peebles & Xie 2022 (arXiv 2212.09748): 3.04",
    values=(3.04,),
    ask=f"VIRTUAL_imagenet512.npz of {ADM}",
)
GLYPHS = Published(
    of="the shipped base glyphs",
    source="its card, and glyphs/results/measured-glyphs.json in the repository: 1.440",
    values=(1.44,),
    num_images=1240,
    steps=50,
    guidance=1.5,
    guidance_channels="all",
    features="glyphs",
    resize=None,
    ask="the statistics that ship as latin",
    reference="latin",
    rounded=0.0005,
)


def published_of(base: Base) -> Published | None:
    """What was published of a base: of a shipped one by its name, of a DiT by its architecture, as
    nobody publishes what tells released weights from others. None: nothing that is known here.
    """
    if base.positions is not None:
        return None  # at another size than it was published at
    if base.name == "glyphs":
        return GLYPHS
    if not isinstance(base.denoiser, DiT):
        return None
    found = replace(base.denoiser.config, frequency_shift=0.0)
    of_size = {32: DIT_256, 64: DIT_512}
    for size, published in of_size.items():
        if found == replace(preset("DiT-XL/2"), image_size=size):
            return published
    return None


def check_published(
    base: Base, published: Published, config: VerifyConfig, progress: Progress | None = None
) -> Check:
    """Draws as the authors did and measures the distance; with fewer images than theirs what that
    of as many would be (`expected_of`), which may differ by three standard errors.

    Raises: UsageError, SmidgenError as the evaluation.
    """
    reference = config.reference or published.reference
    facts: dict[str, Any] = {
        "published": list(published.values),
        "published_images": published.num_images,
        "source": published.source,
    }
    if reference is None:
        found = f"the published number is against {published.ask}: give it as reference"
        return Check(name="published", status="not possible", found=found, facts=facts)
    document = measure_drawing(
        prepare(base, sampling_of(base, published, config)),
        reference,
        EvaluationConfig(
            features=published.features,
            resize=published.resize,
            metrics="fd,fd_infinity",
            weights=config.weights,
            batch_size=config.batch_size,
            cache_dir=config.cache_dir,
            device=str(base.device),
        ),
        name=f'base "{base.name}"',
        progress=progress,
    )
    metrics, protocol = document["metrics"], document["protocol"]
    protocol |= {"reference": Path(str(protocol["reference"])).name}  # where that lies is left out
    facts |= {"metrics": metrics, "protocol": protocol}
    return judged(published, metrics["fd"], metrics["fd_infinity"], protocol, facts)


def sampling_of(base: Base, published: Published, config: VerifyConfig) -> MeasuredSampling:
    """As the authors drew."""
    return MeasuredSampling(
        num_images=config.num_images or min(SHORT, published.num_images),
        steps=published.steps,
        sampler="ddpm",
        guidance=published.guidance,
        guidance_channels=published.guidance_channels,
        seed=config.seed,
        batch_size=config.batch_size,
        precision=precision_of(config, base.device.type),
    )


def precision_of(config: VerifyConfig, device: str) -> Any:
    """The number format in which images are drawn on a device of this type."""
    return config.precision or ("fp32" if device == "cpu" else "bf16")


def judged(
    published: Published,
    distance: float,
    endless: dict[str, float],
    protocol: dict[str, Any],
    facts: dict[str, Any],
) -> Check:
    """Whether the distance of so many images is one that the published can be."""
    count, total = protocol["num_images"], published.num_images
    expected, error = expected_of(distance, endless, count, total)
    allowed = ERRORS * error + published.rounded
    off = max(min(published.values) - expected, expected - max(published.values), 0.0)
    facts |= {"expected": expected, "standard_error": error, "allowed": allowed}
    values = " or ".join(f"{value:g}" for value in published.values)
    found = (
        f"Frechet distance {distance:.2f} of {count:,} images, so {expected:.2f} ± {error:.2f} "
        f"(standard error) of {total:,}, published {values}"
    )
    if count < LEAST * protocol["feature_dimensions"]:
        least = LEAST * protocol["feature_dimensions"]
        found += f"; {count:,} are too few to judge by, give num_images {least:,} at least"
        return Check(name="published", status="not possible", found=found, facts=facts)
    status = "pass" if off <= allowed else "fail"
    return Check(name="published", status=status, found=found, facts=facts)


def expected_of(
    distance: float, endless: dict[str, float], count: int, total: int
) -> tuple[float, float]:
    """What the distance of `total` images would be by that of `count`, with the standard error of
    the difference to one that others measured: the bias goes with 1 / N, the variance too.
    """
    bias = distance - endless["mean"]
    expected = endless["mean"] + bias * count / total
    return expected, endless["std"] * (1 + count / total) ** 0.5
