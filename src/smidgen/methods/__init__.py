"""Methods: what is trained. Each file is one, a frozen Config and `build`; METHODS lists them."""

from collections.abc import Mapping

from smidgen.methods import bitfit, difffit, full
from smidgen.methods.label_table import label_table
from smidgen.methods.method import Method, Tunable

METHODS: Mapping[str, Method] = {
    "full": Method(full.Config, full.build, default_lr=1e-4),
    "bitfit": Method(bitfit.Config, bitfit.build, default_lr=1e-3),
    "difffit": Method(difffit.Config, difffit.build, default_lr=1e-3),
}

__all__ = ["METHODS", "Method", "Tunable", "label_table"]
