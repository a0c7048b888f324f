"""What families say of themselves."""

from itertools import chain

import pytest

from smidgen.hosts.family import latent_shape_of
from smidgen.hosts.host import HOSTS, families, library_of


def test_every_line_of_the_table_is_a_family_by_the_name_of_its_class():
    assert list(families()) == [path.rpartition(".")[2] for path in HOSTS]


def test_every_class_of_pipelines_belongs_to_one_family():
    names = list(chain.from_iterable(family.pipelines for family in families().values()))
    assert len(names) == len(set(names)) == 10


def test_a_family_whose_prompts_are_read_says_in_which_shapes_and_by_which_pipelines():
    for name, family in families().items():
        assert (family.encode is None) == (not family.pipelines), name
        components = {pipeline.denoiser for pipeline in family.pipelines.values()}
        assert components <= {family.component}, name


def test_networks_are_imported_from_diffusers_unless_the_table_says_otherwise(monkeypatch):
    monkeypatch.setitem(HOSTS, "other_package.networks.Net", "nothing")
    assert library_of("Net") == "other_package.networks"
    assert library_of("UNet2DConditionModel") == library_of("NobodyKnowsIt") == "diffusers"


@pytest.mark.parametrize(
    ("index", "guidance_embeds", "expected"),
    [
        ({"is_distilled": False}, False, True),  # FLUX.2 Klein's base variant
        ({"is_distilled": True}, False, False),
        ({"is_distilled": False}, True, False),
        ({}, False, False),
    ],
)
def test_flux_2_is_guided_by_the_empty_prompt_where_it_is_not_distilled(
    index, guidance_embeds, expected
):
    family = families()["Flux2Transformer2DModel"]
    assert family.guidance == "embedded"
    for pipeline in family.pipelines.values():
        assert pipeline.undistilled(index, {"guidance_embeds": guidance_embeds}) is expected


def test_the_shape_of_a_latent_is_that_of_the_configuration():
    assert latent_shape_of({"in_channels": 4, "sample_size": [32, 48]}) == (4, 32, 48)
    assert latent_shape_of({"in_channels": 64, "sample_size": None}, packed=4) == (16, 128, 128)
    assert latent_shape_of({"in_channels": 128}, side=64) == (128, 64, 64)
