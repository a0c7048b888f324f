"""The host of the Diffusion Transformer against the model itself."""

import pytest
import torch
from torch import nn

from smidgen.core.fold import IntoLinear, IntoModulation, IntoTable
from smidgen.hosts.dit import host as dit_host
from smidgen.models.dit import DiT, DiTConfig, preset


@pytest.fixture(params=["XL", "odd"])
def model(request):
    """The released shape, and one in which no two sizes agree."""
    odd = DiTConfig(
        image_size=6, patch_size=2, in_channels=5, width=12, depth=2, num_heads=3,
        mlp_ratio=2.5, num_classes=5, learn_sigma=False,
    )  # fmt: skip
    with torch.device("meta"):
        return DiT(preset("DiT-XL/2") if request.param == "XL" else odd)


def test_biases_are_those_of_the_model_and_nothing_else(model):
    host = dit_host(model)
    modules = [site.module for site in host.biases]
    expected = {n.removesuffix(".bias") for n, _ in model.named_parameters() if n.endswith(".bias")}
    assert set(modules) == expected
    assert len(modules) == len(expected)
    assert all(host.sizes[s] == model.get_submodule(s.module).bias.numel() for s in host.biases)


def test_dit_xl_has_145_biases():
    with torch.device("meta"):
        assert len(dit_host(DiT(preset("DiT-XL/2"))).biases) == 145


def test_every_site_exists_and_has_a_fold_target(model):
    host = dit_host(model)
    taps = [*host.taps.values(), *(site for block in host.blocks for site in block.values())]
    for site in (*taps, *host.biases):
        assert isinstance(model.get_submodule(site.module), nn.Module)
        assert site in host.folds
    assert len(host.blocks) == model.config.depth


def test_fold_targets_name_tensors_with_the_rows_they_change(model):
    host, state = dit_host(model), model.state_dict()
    for site, target in host.folds.items():
        match target:
            case IntoLinear(weight, bias):
                assert state[weight].shape[0] == host.sizes[site] == state[bias].numel()
            case IntoModulation(weight, bias, shift, scale):
                assert shift[1] - shift[0] == scale[1] - scale[0] == host.sizes[site]
                assert max(shift[1], scale[1]) <= state[weight].shape[0] == state[bias].numel()
            case IntoTable(weight):
                assert state[weight].shape == (model.config.num_classes + 1, model.config.width)


def test_fixed_parameters_are_the_positions(model):
    host = dit_host(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert host.fixed == frozen == {"pos_embed"}


def test_sizes_are_those_of_the_activations():
    config = DiTConfig(image_size=4, in_channels=2, width=8, depth=2, num_heads=2, num_classes=3)
    model = DiT(config)
    host, seen = dit_host(model), {}
    for site in host.sizes:
        model.get_submodule(site.module).register_forward_hook(
            lambda module, args, output, site=site: seen.update({site: output.shape[site.axis]})
        )
    model(torch.randn(2, 2, 4, 4), torch.tensor([1, 2]), torch.tensor([0, 3]))
    assert seen == dict(host.sizes)
