"""What a PEFT adapter's configuration says of its LoRA: every field is harmless, read, or refused
where it is set. A field that is not known here is refused where it is set.

The fields are those of LoraConfig in PEFT 0.21; a test compares the table with the installed PEFT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, fit
from smidgen.interop.factors import Start

# without a part in what a trained LoRA gives; ranks and modules are those of the tensors
HARMLESS = frozenset(
    (
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "rank_pattern", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern", "lora_dropout", "megatron_core"),
        *("qalora_group_size", "runtime_config"),
        # of the start alone, which `init_lora_weights` names
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    )
)
READ = frozenset(("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights"))
REFUSED = frozenset(
    (
        *("fan_in_fan_out", "bias", "modules_to_save", "megatron_config", "use_dora"),
        *("trainable_token_indices", "velora_config", "alora_invocation_tokens", "use_qalora"),
        *("monteclora_config", "layer_replication", "lora_bias", "target_parameters"),
        *("use_bdlora", "arrow_config", "kasa_config", "ensure_weight_tying"),
    )
)
UNSET = (None, False, "", [], {})
DEFAULT_ALPHA = 8.0  # of LoraConfig

# how a LoRA started: where the base stayed as it was, and where it lost what can be computed again
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
STARTS: Mapping[str, Start] = {"pissa": "pissa", "olora": "olora"}

Number = Annotated[float, Meta(ge=-1e6, le=1e6)]


class _Read(TypedDict, total=False):
    peft_type: str | None
    lora_alpha: Number
    alpha_pattern: dict[str, Number] | None
    use_rslora: bool | None
    init_lora_weights: bool | str | None


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The scale of each module's LoRA, and how they all started.

    `alpha` None: a scale of 1. `patterns` are names of modules with alphas of their own, the first
    that fits counts. `by_root`: alpha / sqrt(rank) instead of alpha / rank.
    """

    alpha: float | None = None
    patterns: Sequence[tuple[Pattern, float]] = ()
    by_root: bool = False
    start: Start | None = None

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """That of a LoRA whose file gives it this `alpha`, None: no alpha."""
        if alpha is None:
            fitting = (own for pattern, own in self.patterns if pattern.fits(module))
            alpha = next(fitting, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.by_root else rank)


@dataclass(frozen=True)
class Pattern:
    """The end of a module's dotted name, or with `whole` all of it, as PEFT finds it by a regular
    expression: a character, or None for any. Other expressions can take for ever to find.
    """

    characters: tuple[str | None, ...]
    whole: bool = False

    def fits(self, name: str) -> bool:
        start = len(name) - len(self.characters)
        if start < 0 or (start > 0 and (self.whole or name[start - 1] != ".")):
            return False
        pairs = zip(self.characters, name[start:], strict=True)
        return all(mine is None or mine == other for mine, other in pairs)


def read_config(config: Mapping[str, Any], source: Path) -> Scaling:
    """What a configuration says: that of PEFT, or of diffusers, with those of several components
    under their names, of which text encoders' are left out. An empty one says nothing.

    Raises: SmidgenError naming the field that is set and not read, or of another type.
    """
    own: dict[str, Any] = {}
    for key, value in config.items():
        component, dot, rest = key.partition(".")
        if not (dot and component.startswith("text_encoder")):
            own[rest if dot and component in ("unet", "transformer") else key] = value
    if not own:
        return Scaling()
    try:
        read = fit(own, _Read)
    except Unreadable as error:
        raise SmidgenError(f"{source}: the configuration of its LoRA: {error.reason}") from error
    kind = read.get("peft_type") or "LORA"
    if kind != "LORA":
        raise SmidgenError(f"{source} is {_shown(kind)}; only plain LoRA is read")
    for name, value in own.items():
        if name not in HARMLESS | READ and value not in (*UNSET, *(["none"] * (name == "bias"))):
            known = "" if name in REFUSED else ", which is not known here,"
            harmless = "" if name in REFUSED else ", or take the field out if it changes nothing"
            raise SmidgenError(
                f"{source}: {_shown(name)} is set{known} and may change what the LoRA computes "
                f"({_shown(value)}); only plain LoRA is read. Merge it into its base with PEFT "
                f"(merge_and_unload) and use that as the base, or train without it{harmless}"
            )
    patterns = [
        (_pattern(text, source), alpha) for text, alpha in (read.get("alpha_pattern") or {}).items()
    ]
    return Scaling(
        alpha=read.get("lora_alpha", DEFAULT_ALPHA),
        patterns=patterns,
        by_root=bool(read.get("use_rslora")),
        start=_start(read.get("init_lora_weights"), source),
    )


def _start(value: bool | str | None, source: Path) -> Start | None:
    """The start that took its product out of the base's weights; None of one that did not."""
    if not isinstance(value, str) or value.lower() in PLAIN_STARTS:
        return None
    if value.lower() not in STARTS:
        raise SmidgenError(
            f"{source}: init_lora_weights is {_shown(value)}: that start changed the base's own "
            "weights, and the LoRA is of no use without them; save it with PEFT's "
            'save_pretrained(..., path_initial_model_for_weight_conversion="FOLDER OF THE START")'
        )
    return STARTS[value.lower()]


def _pattern(text: str, source: Path) -> Pattern:
    """Raises: SmidgenError for a regular expression that is no name."""
    characters: list[str | None] = []
    rest = text.removeprefix("^").removesuffix("$")
    while rest:
        escaped = rest[0] == "\\" and len(rest) > 1
        one, rest = (rest[1], rest[2:]) if escaped else (rest[0], rest[1:])
        if one.isalnum() if escaped else one in "\\*+?{}[]()|^$":
            raise SmidgenError(
                f"{source}: alpha_pattern has the regular expression {_shown(text)}; only names of "
                "modules are taken: write those that it stands for, each with its alpha"
            )
        characters.append(None if one == "." and not escaped else one)
    return Pattern(tuple(characters), whole=text.startswith("^"))


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]
