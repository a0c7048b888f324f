"""What a family of networks is besides its host: how the network is called, what the folders of its
pipelines hold, and what other programs call its modules. B images, L tokens of text, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from smidgen.errors import SmidgenError
from smidgen.hosts.renaming import Renaming
from smidgen.sizes import ImageSize

# What a prediction depends on besides x_t and t, each with the images as its first axis: "labels"
# (B,), "text" (B, L, D), "mask" (B, L), "pooled" (B, D), "time_ids" (B, 6), "guidance" (B,).
Condition = Mapping[str, Tensor]
Config = Mapping[str, Any]  # what a config.json says


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One class of pipelines.

    Its network is in the folder `denoiser`; `tokenizers` and `encoders` turn prompts into
    conditions; `optional` names those of them that a folder may lack. A token of the network is
    `patch` latent pixels wide. `even_to_fraction` and `fitted_shift` are as in
    `schedulers.flow_of`. `undistilled(index, config)`: whether, by the pipeline's index and the
    network's configuration, this one is guided by the empty prompt though its family is not.
    `halvings(config)`: how often its network halves the latents, so that sides of which it leaves
    nothing over are best; `most_tokens(config)`: how many it knows positions of along a side.
    """

    denoiser: Literal["unet", "transformer"] = "transformer"
    tokenizers: tuple[str, ...] = ("tokenizer",)
    encoders: tuple[str, ...] = ("text_encoder",)
    optional: tuple[str, ...] = ()
    patch: int = 1
    even_to_fraction: bool = False
    fitted_shift: bool = False
    undistilled: Callable[[Config, Config], bool] = lambda index, config: False
    halvings: Callable[[Config], int] = lambda config: 0
    most_tokens: Callable[[Config], int | None] = lambda config: None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The components that read prompts."""
        return (*self.tokenizers, *self.encoders)


TWO_TOKENIZERS = ("tokenizer", "tokenizer_2")
TWO_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, kw_only=True)
class Original:
    """The code in which a family came out, by whose names other programs read single files.

    `models` says whose files there are. `names(modules)`: what the code calls these modules of a
    network; `refusal(config)`: why it has no network of this configuration, None if it has. The
    tensors of a file's codec begin with `codec`, those of its CLIP and OpenCLIP as
    `text_encoders` says for a pipeline with so many, nothing where files have none.
    `kohya(config)`: whether kohya's trainer names such a network so, and not as diffusers.
    """

    models: str
    names: Callable[[Collection[str]], Renaming]
    codec: str
    text_encoders: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    refusal: Callable[[Config], str | None] = lambda config: None
    kohya: Callable[[Config], bool] = lambda config: True


def latent_shape_of(config: Config, *, packed: int = 1, side: int = 128) -> tuple[int, int, int]:
    """(C, H, W) of what a network of diffusers was trained on, by its configuration; `packed`: how
    many latents an input has side by side, `side`: H and W where the configuration has none.
    """
    size = config.get("sample_size") or side
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"] // packed, height, width


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the networks of one host are called, and where they come from.

    `predict(network, x_t, t, condition)`: x_t (B, C, H, W) in the codec's scaled space -> epsilon,
    v or velocity of the same size, with the variance channels behind where there are any.
    `parameterisation` "scheduler": t (B,) counts steps from 0, the target is epsilon or v as the
    pipeline's scheduler says; "flow": t is sigma in (0, 1], the target is noise - x_0, and x_t is
    (1 - sigma) x_0 + sigma noise. `encode(pipeline, prompts, image_size)` gives the condition of
    prompts, for images of this size; None where conditions are labels. `guidance`
    "embedded": the network takes the guidance scale as an input.

    `latent_shape(config)` is (C, H, W) of what a network of this configuration was trained on,
    `condition_shapes(config)` has the shapes of one image's condition, with as many tokens of text
    as the released pipelines give: what a step needs is counted with them. `pipelines` are the
    classes of pipelines that can be loaded. `original` None: no other program's names are known.
    `diffusers(modules)`: what diffusers calls these modules, for a class that is not diffusers'.
    `code` is where the original code is kept; `architecture(config, predicts_v)` the name of such a
    network in ModelSpec, or as kohya's trainer writes it, None where neither has one.
    """

    predict: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    encode: Callable[[Any, Sequence[str], ImageSize], Condition] | None
    parameterisation: Literal["scheduler", "flow"]
    guidance: Literal["classifier-free", "embedded"] = "classifier-free"
    latent_shape: Callable[[Any], tuple[int, int, int]] = latent_shape_of
    condition_shapes: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}
    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)
    original: Original | None = None
    diffusers: Callable[[Collection[str]], Renaming] | None = None
    code: str | None = None
    architecture: Callable[[Any, bool], str | None] = lambda config, predicts_v: None

    @property
    def component(self) -> str:
        """The component of a pipeline that the network is."""
        return next((found.denoiser for found in self.pipelines.values()), "transformer")


def needed(condition: Condition, key: str, family: str) -> Tensor:
    """`condition[key]`. Raises: SmidgenError if the condition lacks it."""
    if key not in condition:
        given = ", ".join(condition) or "nothing"
        raise SmidgenError(f'a {family} base needs "{key}" in the condition, which has: {given}')
    return condition[key]
