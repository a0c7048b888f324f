"""Methods: what is trained. Each file is one, a frozen Config and `build`; METHODS lists them."""

from collections.abc import Mapping
from typing import Any

from smidgen.errors import UsageError, closest
from smidgen.methods import adapter, adaptformer, bitfit, difffit, full, lora, vpt
from smidgen.methods.combine import PLUS, combine
from smidgen.methods.label_table import label_table
from smidgen.methods.method import Method, Tunable, make_config

METHODS: Mapping[str, Method] = {
    "full": Method(full.Config, full.build, default_lr=1e-4),
    "bitfit": Method(bitfit.Config, bitfit.build, default_lr=1e-3),
    "difffit": Method(difffit.Config, difffit.build, default_lr=1e-3),
    "adaptformer": Method(adaptformer.Config, adaptformer.build, default_lr=1e-3),
    "vpt": Method(vpt.Config, vpt.build, default_lr=1e-3),
    "lora": Method(lora.Config, lora.build, default_lr=1e-3),
    "adapter": Method(adapter.Config, adapter.build, default_lr=1e-4),
}


def resolve(name: str) -> Method:
    """The method of this name, or the combination of several: "difffit+lora".

    Raises: UsageError for an unknown name, with the closest one, or one given twice.
    """
    parts = [part.strip() for part in str(name).split(PLUS)]
    for part in parts:
        if part not in METHODS:
            raise UsageError(f'unknown method "{part}"{closest(part, METHODS)}')
        if parts.count(part) > 1:
            raise UsageError(f'method "{name}" names {part} twice; once is enough')
    if len(parts) == 1:
        return METHODS[parts[0]]
    return combine({part: METHODS[part] for part in parts})


def configure(name: str, values: Mapping[str, Any] | None = None) -> tuple[Method, Any]:
    """A method by name and its config with these options; those of a combination by method, such
    as {"lora": {"rank": 4}}.

    Raises: UsageError for an unknown method, option or value.
    """
    method = resolve(name)
    return method, make_config(name, method, values or {})


__all__ = ["METHODS", "Method", "Tunable", "configure", "label_table", "resolve"]
