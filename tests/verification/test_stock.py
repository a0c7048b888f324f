"""Our network beside stock diffusers': equal for every class of pipelines and every file of a DiT,
and found out where something is wrong.
"""

from dataclasses import replace

import pytest
import torch

from smidgen.errors import SmidgenError
from smidgen.models.codec import save_codec
from smidgen.models.dit import preset
from smidgen.models.dit_weights import write_diffusers, write_original_pt
from smidgen.models.pretrained import load_base
from smidgen.verification.stock import check_forward
from tests.tiny.bases import tiny_base
from tests.tiny.networks import dit
from tests.tiny.own_folder import write_safetensors
from tests.tiny.pipelines import TINY_PIPELINES

CONFIG = replace(
    preset("DiT-S/2"), image_size=8, width=48, depth=2, num_heads=6, num_classes=5, in_channels=4
)


@pytest.mark.parametrize("name", TINY_PIPELINES)
def test_every_pipeline_says_what_the_stock_one_says(name, tmp_path):
    tiny = TINY_PIPELINES[name]
    base = load_base(tiny.save(tmp_path / "pipeline"), image_size=tiny.image_size)
    found = check_forward(base)
    assert found.status == "pass"
    assert found.facts["stock"] == tiny.kind
    assert found.facts["largest_output"] > 0.1


def changed_weights(base, monkeypatch):
    with torch.no_grad():
        next(base.denoiser.parameters()).mul_(1.01)


def another_prompt(base, monkeypatch):
    conditions = base.conditions
    monkeypatch.setattr(base, "conditions", lambda prompts: conditions(["a red fox"]))


def another_step(base, monkeypatch):
    predict = base.family.predict
    base.family = replace(
        base.family, predict=lambda network, x, t, condition: predict(network, x, t + 1, condition)
    )


@pytest.mark.parametrize("wrong", [changed_weights, another_prompt, another_step])
def test_what_is_wrong_fails(wrong, tmp_path, monkeypatch):
    base = load_base(TINY_PIPELINES["sd"].save(tmp_path / "pipeline"))
    wrong(base, monkeypatch)
    assert check_forward(base).status == "fail"


def released(kind, folder):
    """A DiT as its weights come: our folder, an original .pt or a folder of diffusers."""
    model, codec = dit(CONFIG), load_base("glyphs").codec
    if kind == "ours":
        write_safetensors(model, folder, codec=codec)
        return load_base(folder)
    if kind == "pt":
        save_codec(codec, folder / "vae")
        write_original_pt(model, folder / "dit.pt")
        return load_base(folder / "dit.pt", codec=folder / "vae", num_heads=CONFIG.num_heads)
    write_diffusers(model, folder, codec=codec)
    return load_base(folder)


@pytest.mark.parametrize("kind", ["ours", "pt", "diffusers"])
def test_a_dit_of_every_file_says_what_diffusers_says_but_for_its_frequencies(kind, tmp_path):
    base = released(kind, tmp_path / "base")
    found = check_forward(base)
    assert found.status == "pass"
    assert found.facts["stock"] == "DiTTransformer2DModel"
    # frequencies are another matter than weights, and their difference is said
    assert found.facts["largest_difference_with_own_frequencies"] > found.facts["tolerance"]
    assert "shift 0" in found.found


def test_a_dit_whose_weights_are_not_those_of_its_folder_fails(tmp_path):
    base = released("diffusers", tmp_path / "base")
    with torch.no_grad():
        base.denoiser.get_parameter("blocks.0.attn.proj.bias").add_(0.1)
    assert check_forward(base).status == "fail"


def test_a_dit_that_diffusers_cannot_express_is_not_possible():
    base = tiny_base(mlp_ratio=2.0)
    with pytest.raises(SmidgenError, match="4 times as wide"):
        check_forward(base)
