"""How products with frozen weights are computed, by name; read before torch is imported."""

from typing import Literal

FrozenPrecision = Literal["exact", "8bit-backward", "8bit"]
