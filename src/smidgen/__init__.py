"""smidgen fine-tunes a pretrained diffusion model by a smidgen of its parameters.

The names below are loaded at their first use: `import smidgen` alone loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smidgen.errors import SmidgenError

if TYPE_CHECKING:
    from smidgen.api import (
        Delta,
        SamplingConfig,
        anova,
        compare,
        evaluate,
        explain,
        export_embeddings,
        export_lora,
        fold,
        gate,
        import_embeddings,
        import_lora,
        inspect,
        load_base,
        orphans,
        pull,
        push,
        sample,
        sample_arrays,
        sds,
        train,
        verify,
    )

__all__ = [
    "Delta",
    "SamplingConfig",
    "SmidgenError",
    "anova",
    "compare",
    "evaluate",
    "explain",
    "export_embeddings",
    "export_lora",
    "fold",
    "gate",
    "import_embeddings",
    "import_lora",
    "inspect",
    "load_base",
    "orphans",
    "pull",
    "push",
    "sample",
    "sample_arrays",
    "sds",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'smidgen' has no attribute {name!r}")
    from smidgen import api

    value = globals()[name] = getattr(api, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
