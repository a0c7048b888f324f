"""Score distillation: what is pulled where, how a relief looks, and that a base likes it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import smidgen
from smidgen.cli.main import main
from smidgen.distillation.config import DistillationConfig
from smidgen.distillation.relief import Relief
from smidgen.distillation.run import distill, pull
from smidgen.distillation.score import LEAST, MOST, Judge, sds_target
from smidgen.errors import UsageError
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from tests.tiny.bases import tiny_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relief_of(side: int = 16) -> Relief:
    return Relief(side, side, 0.4, seeded())


def test_the_pull_is_predicted_noise_minus_noise_through_renderer_and_encoder():
    base = tiny_base()
    judge = Judge(base=base, labels=labels_of(base), shown=1)
    config = DistillationConfig(space="latents", guidance=3.0, batch_size=2)
    sides, found = torch.tensor([[0.3, 0.1], [-0.4, 0.0]]), relief_of(8)
    pull(judge, config, found.render(sides), seeded(5)).backward()

    generator, expected = seeded(5), relief_of(8)
    quantiles = LEAST + (MOST - LEAST) * torch.rand(2, generator=generator, dtype=torch.float64)
    t = (1000 * quantiles).long()
    latents, _ = base.codec.encode(expected.render(sides))
    noise = torch.randn(latents.shape, generator=generator)
    abar = base.process.schedule.alphas_cumprod[t].float().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        x_t = abar.sqrt() * latents + (1 - abar).sqrt() * noise
        shown, none = (base.denoiser(x_t, t, torch.full((2,), n))[:, :4] for n in (1, 3))
        gradient = (1 - abar) * (none + 3.0 * (shown - none) - noise)
    latents.backward(gradient / 2)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_of_a_flow_it_is_the_same_of_its_velocity(tmp_path):
    base = load_base(TINY_PIPELINES["sd3"].save(tmp_path / "sd3", scheduler={"shift": 3.0}))
    latents = torch.randn(2, *base.latent_shape, generator=seeded())
    velocity = torch.randn(latents.shape, generator=seeded(1))
    target, weight = sds_target(base.process, lambda x, t: velocity, latents, seeded(2))
    generator = seeded(2)
    quantiles = LEAST + (MOST - LEAST) * torch.rand(2, generator=generator, dtype=torch.float64)
    sigma = base.process.times(quantiles, "uniform").reshape(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator)
    x_t = (1 - sigma) * latents + sigma * noise
    predicted_noise = x_t + (1 - sigma) * velocity
    expected = sigma**2 * (predicted_noise - noise)
    torch.testing.assert_close(weight * (latents - target), expected, rtol=1e-4, atol=1e-5)


def test_what_stands_high_moves_to_the_side_and_what_lies_low_does_not():
    relief = relief_of(32)
    with torch.no_grad():
        relief.bumps.fill_(-20.0)  # flat on the ground
        relief.bumps[:, 12:20, 12:20] = 20.0
        relief.paint.fill_(20.0)
        relief.paint[:, 14:18, 14:18] = -20.0  # a dark spot on a plateau 0.4 high
        relief.paint[:, 2:4, 2:4] = -20.0  # and one on the ground
    dark = (relief.render(torch.tensor([[0.0, 0.0], [0.5, 0.0]])).mean(1) < -0.5).float()
    columns = torch.arange(32).float()
    centres = []
    for view in dark:
        for part in (view[10:22], view[:8]):
            centres.append(float((part.sum(0) * columns).sum() / part.sum()))
    high, low, high_aside, low_aside = centres
    assert high_aside - high == pytest.approx(0.4 * 0.5 * 16, abs=0.6)  # pixels: half a side is 16
    assert low_aside == pytest.approx(low, abs=1e-3)


@pytest.mark.slow
def test_the_base_comes_to_prefer_the_relief_and_stays_as_it_was(tmp_path):
    base = load_base("glyphs")
    delta = tiny_delta(base, "difffit", ("upper-a", "lower-b"), std=0.001).float()
    delta.provenance = dataclasses.replace(delta.provenance, fingerprint=base.fingerprint)
    before = {name: tensor.clone() for name, tensor in base.denoiser.state_dict().items()}
    settings = {"steps": 12, "num_views": 3, "class_name": "upper-a", "depth": 0.3}
    document = smidgen.sds(base, tmp_path / "out", delta=delta, **settings)
    preference = document["preference"]
    assert preference["after"] > preference["before"] + 0.01
    assert document["shown"] == "upper-a"
    assert all(torch.equal(before[n], one) for n, one in base.denoiser.state_dict().items())
    assert json.loads((tmp_path / "out" / "sds.json").read_text()) == document
    relief = load_file(tmp_path / "out" / "relief.safetensors")
    assert relief["heights"].shape == (1, 32, 32)
    assert 0 <= relief["heights"].min() <= relief["heights"].max() <= 0.3
    assert 0 <= relief["colours"].min() <= relief["colours"].max() <= 1
    with Image.open(tmp_path / "out" / "views.png") as views:
        assert views.size == (3 * 32, 32)


def test_a_base_that_is_told_the_scale_is_told_it(tmp_path):
    base = load_base(TINY_PIPELINES["flux"].save(tmp_path / "flux"), image_size=32)
    told = []
    base.denoiser.register_forward_pre_hook(
        lambda module, args, given: told.append(given["guidance"].tolist()), with_kwargs=True
    )
    config = DistillationConfig(prompt="a fox", guidance=4.0, steps=2, batch_size=3, num_views=2)
    found = distill(base, None, config)
    assert told.count([4.0] * 3) == 2  # one pass a step
    assert {scale for one in told for scale in one} == {1.0, 4.0}  # 1: what a preference is of
    assert 0 not in (found.before, found.after)


def test_pictures_are_no_delta(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos")
    places = ["--base", "glyphs", "--delta", str(photos), "--output", str(tmp_path / "out")]
    assert main(["sds", *places, "--class-name", "upper-a"]) == 2
    assert "holds images; give a run's folder or a delta's file" in capsys.readouterr().err


def test_a_relief_depends_on_its_seed_alone():
    config = DistillationConfig(steps=2, seed=3)
    one, other = (distill(tiny_base(), None, config) for _ in range(2))
    assert one.document() == other.document()
    assert np.array_equal(one.views, other.views)
    third = distill(tiny_base(), None, dataclasses.replace(config, seed=4))
    assert not np.array_equal(one.views, third.views)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "an owl"}, "prompt is of no use to base"),
        ({"class_name": "elk"}, "elk"),
        ({"steps": 0}, "steps is 0"),
        ({"space": "words"}, "space is"),
        ({"prompt": "an owl", "class_name": "bee"}, "give one of them"),
    ],
)
def test_misuse_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        smidgen.sds(tiny_base(), **settings)
