"""What fits into a graphics card of 11 GB, by the estimate: counts of bytes on released sizes."""

import pytest

import smidgen

CARD = 11e9
SETTINGS = {
    "gradient_checkpointing": True,
    "precision": "bf16",
    "base_precision": "bf16",
    "device": "cuda",
}
WEIGHTS = {"sd-1.5": 2 * 859_520_964, "sdxl": 2 * 2_567_463_684}  # of bf16


@pytest.mark.parametrize(  # of adapter, DiffFit and LoRA the first takes the most
    ("base", "batch_size", "method"), [("sd-1.5", 4, "adapter"), ("sdxl", 1, "adapter")]
)
def test_a_training_at_the_size_of_the_model_fits(base, batch_size, method):
    memory = smidgen.inspect(base, method=method, batch_size=batch_size, **SETTINGS)["memory"]
    assert memory["weights"] == WEIGHTS[base]
    assert memory["optimizer"] == 2 * memory["delta"] == 2 * memory["average"]
    parts = ("weights", "delta", "optimizer", "average", "step")
    assert memory["total"] == sum(memory[part] for part in parts) < CARD
    # and not for nothing: activations of the largest layer alone are a few hundred megabytes
    assert memory["step"] > 2e8
