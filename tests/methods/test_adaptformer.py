"""AdaptFormer against its equations written out here."""

import pytest

from smidgen.errors import UsageError
from smidgen.methods.configs import AdaptFormerConfig
from tests.laws.tiny import (
    NEW_CLASSES,
    TINY_HOSTS,
    all_labels,
    tiny_base,
    tiny_delta,
    trained_tensors,
)
from tests.methods.equations import assert_same_output_and_gradients, dit


@pytest.mark.parametrize("form", ["parallel", "sequential"])
def test_outputs_and_gradients_equal_the_equations(form):
    base = tiny_base("dit")
    delta = tiny_delta(base, "adaptformer", form=form, width=3, scale=0.7)
    inputs = TINY_HOSTS["dit"].inputs(all_labels(NEW_CLASSES))
    d = trained_tensors(delta)

    def feed_forward(n, read, output):
        name = f"blocks.{n}.adaptformer"
        h = read if form == "parallel" else output
        h = (h @ d[f"{name}.down.weight"].T + d[f"{name}.down.bias"]).clamp(min=0)
        return output + 0.7 * (h @ d[f"{name}.up.weight"].T + d[f"{name}.up.bias"])

    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs)
    expected = dit(
        base.denoiser.state_dict(), d["label_table.rows"], *inputs, feed_forward=feed_forward
    )
    # the timestep's features are float32 in both, computed in another order
    assert_same_output_and_gradients(delta, output, expected)


def test_the_default_is_parallel_of_width_64_and_scale_one_tenth():
    delta = tiny_delta(tiny_base("dit"), "adaptformer", std=0.0)
    assert delta.provenance.config == {"form": "parallel", "width": 64, "scale": 0.1}
    tensors = trained_tensors(delta)
    assert tensors["blocks.1.adaptformer.down.weight"].shape == (64, 16)
    for block in range(2):
        assert not tensors[f"blocks.{block}.adaptformer.up.weight"].any()
        assert not tensors[f"blocks.{block}.adaptformer.up.bias"].any()
        assert tensors[f"blocks.{block}.adaptformer.down.weight"].abs().min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "serial"}, "choose from: parallel, sequential"),
        ({"width": 0}, "at least 1"),
        ({"scale": float("nan")}, "scale is nan"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        AdaptFormerConfig(**options)
