"""One object says what is drawn; whatever is wrong with it is told when it is made or resolved."""

import dataclasses
from typing import get_args

import pytest

from smidgen.diffusion.names import Sampler
from smidgen.diffusion.sampler import SAMPLERS
from smidgen.errors import UsageError
from smidgen.sampling.config import SamplingConfig
from tests.tiny.bases import tiny_base


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_images", 0),
        ("steps", 2.5),
        ("batch_size", -1),
        ("seed", -1),
        ("guidance", float("inf")),
        ("guidance", -1.0),
        ("sampler", "dppm"),
        ("guidance_channels", "two"),
        ("precision", "fp8"),
    ],
)
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=f"^{name} is "):
        SamplingConfig(**{name: value})


def test_the_base_decides_what_is_left_open():
    base = tiny_base()
    resolved = SamplingConfig().resolved(base)
    assert (resolved.sampler, resolved.precision) == ("ddpm", "fp32")
    assert SamplingConfig(sampler="ddim").resolved(base).sampler == "ddim"
    with pytest.raises(UsageError, match="a diffusion base; use ddpm, ddim"):
        SamplingConfig(sampler="euler").resolved(base)
    with pytest.raises(UsageError, match="dpm\\+\\+ takes at most 999"):
        SamplingConfig(sampler="dpm++", steps=1000).resolved(base)


def test_every_sampler_has_a_name_and_every_name_a_sampler():
    assert {*SAMPLERS, "euler"} == set(get_args(Sampler))


def test_the_facts_are_all_settings_that_change_an_image():
    names = {field.name for field in dataclasses.fields(SamplingConfig)}
    assert set(SamplingConfig().facts()) == names - {"batch_size"}
