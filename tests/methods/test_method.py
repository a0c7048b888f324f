"""What a built delta says about itself."""

import json
from dataclasses import FrozenInstanceError, is_dataclass

import pytest
import torch

from smidgen.errors import UsageError
from smidgen.methods import METHODS
from smidgen.methods.method import assemble
from tests.laws.tiny import NEW_CLASSES, tiny_base, tiny_delta


@pytest.mark.parametrize("method", METHODS)
def test_provenance_says_how_the_delta_was_built(method):
    base = tiny_base("dit")
    provenance = tiny_delta(base, method).provenance
    assert provenance.method == method
    assert (provenance.host, provenance.base) == ("dit", base.name)
    assert provenance.fingerprint == base.fingerprint
    assert provenance.classes == NEW_CLASSES
    assert json.loads(json.dumps(provenance.config)) == provenance.config
    assert METHODS[method].config(**provenance.config)  # names its fields and nothing else


@pytest.mark.parametrize("method", METHODS)
def test_configs_are_frozen_dataclasses_with_defaults(method):
    config = METHODS[method].config()
    assert is_dataclass(config)
    with pytest.raises(FrozenInstanceError):
        config.anything = 1


def test_deltas_learn_ten_times_faster_than_full_fine_tuning():
    rates = {name: method.default_lr for name, method in METHODS.items()}
    assert rates.pop("full") == 1e-4
    assert rates.pop("adapter") == 1e-4  # of its own paper
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


def test_two_edits_of_one_name_are_a_mistake():
    base, config = tiny_base("dit"), METHODS["bitfit"].config()
    edits = dict(tiny_delta(base, "bitfit").edits)
    with pytest.raises(AssertionError, match="one name"):
        assemble(base, "bitfit", config, NEW_CLASSES, edits, edits)


def test_the_same_generator_builds_the_same_delta():
    base = tiny_base("dit")
    one, other = (tiny_delta(base, "difffit").state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
