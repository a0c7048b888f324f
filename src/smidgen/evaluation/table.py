"""The table of metrics: a row says what a metric is called, needs and means, how it is computed and
how its number is written. All else about metrics reads it here.

Nothing heavy is imported, so that the command line knows the names before torch loads: a row names
its function, which is found when it is called (numbers.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

INCEPTION_HEAD = "imagenet-2015"  # the head whose logits the inception score is defined on
CLIP = ("clip-b32", "clip-l14", "clip-glyphs")  # features that read texts too

Needs = Literal[
    "gaussian",
    "features",
    "features-to-gaussian",
    "directions",
    "probabilities",
    "texts",
    "classes",
    "samples",
    "others",
]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    `needs` is what its function is called with, the images' part first and the reference's then:

    - gaussian: mean (D) and covariance (D, D), of each
    - features: all features, (N, D) and (M, D), then the device where to compute
    - features-to-gaussian: all features of the images, (N, D), mean and covariance of the reference
    - directions: the mean of the normalised features (D), of each
    - probabilities: ProbabilitySums of the logits of `head`
    - texts: the cosine (N) of each image with the text of its class
    - classes: the class (N) that a head sees in each image and the one that it should, as indices;
      the same pair (M) of the reference, None where not known; the head, and names of its classes
    - samples: the Samples of a personalisation; of nothing else there are such metrics
    - others: the Others, samples of other prompts; of a delta in a base that reads prompts

    `function` is "module:name". It gets `settings` as keywords too, and returns a number, one with
    a spread (`mean` and `std`), or Found. Rows of one `group` share one call, which returns the
    number of each by name, and their settings go by the group's name.
    """

    label: str  # beside the number of one result
    help: str
    function: str
    needs: Needs
    higher_is_better: bool = True
    short: str | None = None  # above a column of several results; None: the name
    form: str = ".4f"  # of the number
    by_default: bool = False
    features: tuple[str, ...] = ()  # those that it is defined on, all if empty
    head: str | None = None  # one that the features must have; not None for probabilities
    min_images: int = 1  # in each set
    settings: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    unbiased: str | None = None  # few images bias the metric upwards: the one to read first then
    baselines: Mapping[str, str] = field(default_factory=dict)  # shown beside it: name, words


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a metric's function says beside its value.

    `settings` replace or join those of the row in the protocol, `notes` are a few words beside the
    number, `baselines` numbers to read it against, `facts` other fields of the result.
    """

    value: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    baselines: Mapping[str, float | None] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


_neighbours = partial(
    Metric,
    function="smidgen.evaluation.neighbours:prdc",
    needs="features",
    form=".1%",
    min_images=6,
    settings={"k_precision": 3, "k_density": 5},
    group="neighbours",
)
_cosine = partial(Metric, function="smidgen.evaluation.similarity:mean_cosine", needs="directions")
_samples = partial(Metric, needs="samples")
_others = partial(Metric, needs="others")


def _beside(name: str) -> dict[str, str]:
    """What stands beside a metric of a personalisation: its ceiling and its floor."""
    return {f"{name}_of_reference": "real images", f"{name}_of_base": "no delta"}


METRICS: Mapping[str, Metric] = {
    "fd": Metric(
        label="Frechet distance",
        short="FD",
        help="Frechet distance of two Gaussians (FID on inception)",
        function="smidgen.evaluation.metrics:frechet_distance",
        needs="gaussian",
        higher_is_better=False,
        form=".2f",
        by_default=True,
        unbiased="kid",
    ),
    "fd_infinity": Metric(
        label="Frechet distance of endless images",
        short="FD inf",
        help="the same without its bias: tenths left out in turn, mean and standard error",
        function="smidgen.evaluation.jackknife:frechet_jackknife",
        needs="features-to-gaussian",
        higher_is_better=False,
        form=".2f",
        min_images=20,
        settings={"num_groups": 10},
    ),
    "kid": Metric(
        label="kernel distance (KID)",
        short="KID",
        help="kernel distance: MMD^2 with a cubic kernel, mean and spread of subsets",
        function="smidgen.evaluation.kernels:kid",
        needs="features",
        higher_is_better=False,
        form=".5f",
        by_default=True,
        min_images=2,
        settings={"num_subsets": 100, "subset_size": 1000, "seed": 0},
    ),
    "precision": _neighbours(
        label="precision (k = 3)", help="share of the images near a reference image"
    ),
    "recall": _neighbours(label="recall (k = 3)", help="share of the reference near an image"),
    "density": _neighbours(
        label="density (k = 5)", help="as precision, robust to outliers; may exceed 1", form=".4f"
    ),
    "coverage": _neighbours(
        label="coverage (k = 5)", help="share of the reference with an image near it"
    ),
    "inception_score": Metric(
        label="inception score",
        short="IS",
        help="inception score, mean and spread of ten splits",
        function="smidgen.evaluation.metrics:inception_score",
        needs="probabilities",
        form=".2f",
        features=("inception",),
        head=INCEPTION_HEAD,
    ),
    "cmmd": Metric(
        label="CMMD x 1000 (published on CLIP L/14)",
        help="MMD^2 x 1000 of directions, published on clip-l14",
        function="smidgen.evaluation.kernels:cmmd",
        needs="features",
        higher_is_better=False,
        features=CLIP,
    ),
    "class_agreement": Metric(
        label="class agreement",
        short="agreement",
        help="share of the images that a classifier takes for their class",
        function="smidgen.evaluation.metrics:agreement",
        needs="classes",
        form=".1%",
        by_default=True,
        baselines={
            "class_agreement_by_chance": "chance",
            "class_agreement_of_reference": "real images",
        },
    ),
    "clip_i": _cosine(
        label="CLIP-I",
        help="mean cosine of images and reference images",
        features=CLIP,
        baselines=_beside("clip_i"),
    ),
    "dino_i": _cosine(
        label="DINO-I (DINOv2)",
        help="the same, by DINOv2",
        features=("dinov2",),
        baselines=_beside("dino_i"),
    ),
    "clip_t": Metric(
        label="CLIP-T",
        help="mean cosine of an image and the text of its class, --prompt",
        function="smidgen.evaluation.similarity:mean_of_texts",
        needs="texts",
        features=CLIP,
        baselines=_beside("clip_t"),
    ),
    "ink": _samples(
        label="ink of the prompt",
        help="of a personalisation of glyphs-text: share of the samples in the ink of their prompt",
        function="smidgen.evaluation.samples:ink",
        form=".1%",
        features=("clip-glyphs",),
        baselines={"ink_of_base": "no delta"},
    ),
    "ground": _samples(
        label="ground of the prompt",
        help="the same of its ground",
        function="smidgen.evaluation.samples:ground",
        form=".1%",
        features=("clip-glyphs",),
        baselines={"ground_of_base": "no delta"},
    ),
    "ink_and_ground": _samples(
        label="ink and ground of the prompt",
        short="ink+ground",
        help="the same of both",
        function="smidgen.evaluation.samples:ink_and_ground",
        form=".1%",
        features=("clip-glyphs",),
        baselines={"ink_and_ground_of_base": "no delta"},
    ),
    "diversity": _samples(
        label="diversity",
        help="of a personalisation: 1 - mean cosine of two samples of one prompt",
        function="smidgen.evaluation.samples:diversity",
        baselines=_beside("diversity"),
    ),
    "drift": _others(
        label="drift of other prompts",
        short="drift",
        help="of a base that reads prompts: 1 - mean cosine of samples of other prompts with and "
        "without the delta",
        function="smidgen.evaluation.samples:drift",
        higher_is_better=False,
        baselines={"drift_of_base": "no delta", "drift_of_other_noise": "other noise"},
    ),
    "drift_rmse": _others(
        label="drift in pixels, of 255",
        short="drift (pixels)",
        help="the same as the root mean square of the pixels' differences",
        function="smidgen.evaluation.samples:drift_rmse",
        higher_is_better=False,
        form=".2f",
        baselines={"drift_rmse_of_base": "no delta"},
    ),
}
# of a personalisation if none are named, as far as the features and the prompts have them
OF_SUBJECT = (
    *("clip_i", "dino_i", "clip_t", "ink", "ground", "ink_and_ground"),
    *("diversity", "drift", "drift_rmse"),
)


def needing(names: Collection[str], needs: Needs) -> list[str]:
    """Those of the metrics that need this, in the order of the table."""
    return [name for name, row in METRICS.items() if name in names and row.needs == needs]
