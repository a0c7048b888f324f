"""What the methods share: their learning rates and the bounds of their options."""

import pytest

from smidgen.errors import UsageError
from smidgen.methods import METHODS


def test_deltas_learn_ten_times_faster_than_full_fine_tuning():
    rates = {name: method.default_lr for name, method in METHODS.items()}
    assert rates.pop("full") == 1e-4
    assert rates.pop("adapter") == 1e-4  # of its own paper
    assert rates.pop("textual-inversion") == 5e-3  # of its own paper, for one row
    assert set(rates.values()) == {1e-3}


@pytest.mark.parametrize("size", [0, -1, 2**20 + 1, 10**20])
def test_sizes_are_of_a_possible_size(size):
    options = {"lora": "rank", "vpt": "tokens", "adapter": "width", "adaptformer": "width"}
    for method, option in options.items():
        with pytest.raises(UsageError, match=f"^{option} is {size}; expected at (least|most) "):
            METHODS[method].config(**{option: size})


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_scales_are_finite_and_not_zero(scale):
    for method in ("adapter", "adaptformer"):
        with pytest.raises(UsageError, match=f"^scale is {scale}; expected a finite number"):
            METHODS[method].config(scale=scale)
