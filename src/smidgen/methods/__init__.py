"""Methods: what is trained. METHODS lists them; the options of each are in configs.py, its edits in
the file of its name, and build.py makes a delta of them. No torch is imported before that.
"""

from collections.abc import Mapping
from typing import Any

from smidgen.errors import UsageError, closest
from smidgen.files.settings import make
from smidgen.methods.combine import PLUS, combine
from smidgen.methods.configs import (
    AdapterConfig,
    AdaptFormerConfig,
    DiffFitConfig,
    LoRAConfig,
    NoOptions,
    TextualInversionConfig,
    VPTConfig,
)
from smidgen.methods.method import Method

METHODS: Mapping[str, Method] = {
    "full": Method(NoOptions, default_lr=1e-4, encoders="asked"),
    "bitfit": Method(NoOptions, default_lr=1e-3),
    "difffit": Method(DiffFitConfig, default_lr=1e-3),
    "adaptformer": Method(AdaptFormerConfig, default_lr=1e-3),
    "vpt": Method(VPTConfig, default_lr=1e-3),
    "lora": Method(LoRAConfig, default_lr=1e-3),
    "adapter": Method(AdapterConfig, default_lr=1e-4),
    "textual-inversion": Method(TextualInversionConfig, default_lr=5e-3, encoders="always"),
}


def parts_of(name: str) -> dict[str, Method]:
    """The methods that a name means, in its order: two of "difffit+lora".

    Raises: UsageError for an unknown name, with the closest one, or one given twice.
    """
    parts = [part.strip() for part in str(name).split(PLUS)]
    for part in parts:
        if part not in METHODS:
            raise UsageError(f'unknown method "{part}"{closest(part, METHODS)}')
        if parts.count(part) > 1:
            raise UsageError(f'method "{name}" names {part} twice; once is enough')
    return {part: METHODS[part] for part in parts}


def resolve(name: str) -> Method:
    """The method of this name, or the combination of several: "difffit+lora".

    Raises: UsageError as `parts_of`.
    """
    parts = parts_of(name)
    return combine(parts) if len(parts) > 1 else next(iter(parts.values()))


def configure(name: str, values: Mapping[str, Any] | None = None) -> Any:
    """The config of the method of this name with these options; those of a combination by method,
    such as {"lora": {"rank": 4}}.

    Raises: UsageError for an unknown method, option or value.
    """
    return make(resolve(name).config, values or {}, source=name, kind="option")


def acts_in_encoders(name: str, *, asked: bool) -> bool:
    """Whether the method of this name has edits in text encoders; `asked`: with train_text_encoder.

    Raises: UsageError as `parts_of`, or if that was asked of methods that cannot do it.
    """
    kinds = {method.encoders for method in parts_of(name).values()}
    if asked and "asked" not in kinds:
        able = ", ".join(one for one, method in METHODS.items() if method.encoders == "asked")
        raise UsageError(
            f"train_text_encoder is of no use to {name}, which trains nothing in a text encoder; "
            f"leave it out, or use: {able}"
        )
    return asked or "always" in kinds


__all__ = ["METHODS", "Method", "acts_in_encoders", "configure", "parts_of", "resolve"]
