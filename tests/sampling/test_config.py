"""One object says what is drawn; whatever is wrong with it is told when it is made or resolved."""

import dataclasses
from typing import get_args

import pytest
import torch

import smidgen
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


def test_a_precision_that_is_not_the_bases_is_refused_with_how_to_get_it():
    single, half = tiny_base(), tiny_base().to(dtype=torch.bfloat16)
    assert SamplingConfig().resolved(half).precision == "bf16"
    assert SamplingConfig(precision="bf16").resolved(half).precision == "bf16"
    assert SamplingConfig(precision="fp32").resolved(single).precision == "fp32"
    message = 'precision is bf16 and base "tiny-0" is in fp32; load it with dtype=torch.bfloat16'
    with pytest.raises(UsageError, match=message):
        smidgen.sample(single, precision="bf16")
    with pytest.raises(UsageError, match=r"load it with dtype=torch\.float32"):
        smidgen.sample(half, precision="fp32")


def test_every_sampler_has_a_name_and_every_name_a_sampler():
    assert {*SAMPLERS, "euler"} == set(get_args(Sampler))


def test_the_facts_are_all_settings_that_change_an_image():
    names = {field.name for field in dataclasses.fields(SamplingConfig)}
    unusual = {"guidance_kind", "guidance_delta", "guidance_interval", "edits"}  # named where set
    assert set(SamplingConfig().facts()) == names - {"batch_size"} - unusual
