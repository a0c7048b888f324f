"""The host of the Diffusion Transformer against the model itself."""

import pytest
import torch
from torch import nn

from smidgen.core.fold import IntoLinear, IntoModulation, IntoTable
from smidgen.core.sites import bind
from smidgen.hosts.dit import FAMILY
from smidgen.hosts.dit import host as dit_host
from smidgen.models.dit import DiT, DiTConfig, preset


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


def test_every_output_exists_and_has_a_fold_target_but_those_of_whole_blocks(model):
    host = dit_host(model)
    taps = [*host.taps.values(), *(site for block in host.blocks for site in block.taps.values())]
    whole = {block.taps["block.out"] for block in host.blocks}
    for site in (*taps, *host.biases, *host.bare_norms):
        assert isinstance(model.get_submodule(site.module), nn.Module)
        if site.end == "out" and site not in whole:
            assert site in host.folds
    assert len(host.blocks) == model.config.depth


def test_bare_norms_are_the_layer_norms_and_no_norm_has_a_weight(model):
    host = dit_host(model)
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert {site.module for site in host.bare_norms} == norms
    assert len(host.bare_norms) == len(norms)
    assert host.norms == ()


def test_linears_are_those_of_the_model_in_order(model):
    host = dit_host(model)
    whole = [linear for linear in host.linears if linear.rows is None]
    expected = [
        (name, *reversed(m.weight.shape[:2]), isinstance(m, nn.Conv2d))
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    assert [(x.module, x.size_in, x.size_out, x.conv) for x in whole] == expected


def test_rows_of_the_fused_projection_are_queries_keys_and_values():
    config = DiTConfig(image_size=4, in_channels=2, width=8, depth=2, num_heads=2, num_classes=3)
    model = DiT(config).requires_grad_(False)
    attention = model.blocks[1].attn
    rows = {x.role: x for x in dit_host(model).linears if x.block == 1 and x.rows is not None}
    x, outputs = torch.randn(1, 4, 8), {}
    split = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v):
        outputs.update(q=q, k=k, v=v)
        return split(q, k, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        attention(x)
    assert set(rows) == set("qkv")
    for role, linear in rows.items():
        assert linear.module == "blocks.1.attn.qkv"
        part = attention.qkv(x)[..., slice(*linear.rows)]
        assert torch.equal(outputs[role].transpose(1, 2).flatten(2), part)


@pytest.mark.parametrize("position", ["SA_in", "FFN_in", "Trans_out"])
def test_adding_at_a_position_equals_the_block_written_out(position):
    config = DiTConfig(image_size=4, in_channels=2, width=8, depth=1, num_heads=2, num_classes=3)
    model = DiT(config).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    block, point = model.blocks[0], dit_host(model).blocks[0].positions[position]
    x, c = torch.randn(2, 4, 8).double(), torch.randn(2, 8).double()
    added = torch.randn(2, 4, 8).double()

    shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation(c)[:, None].chunk(6, -1)
    y = x + (added if position == "SA_in" else 0)
    y = y + gate1 * block.attn(block.norm1(y) * (1 + scale1) + shift1)
    y = y + (added if position == "FFN_in" else 0)
    y = y + gate2 * block.mlp(block.norm2(y) * (1 + scale2) + shift2)
    expected = y + (added if position == "Trans_out" else 0)

    holder = nn.Module()
    holder.blocks = model.blocks
    handles = [bind(holder, site, lambda h: h + added) for site in point.writes]
    torch.testing.assert_close(block(x, c), expected, atol=1e-12, rtol=1e-12)
    for handle in handles:
        handle.remove()


def test_the_network_is_called_with_labels():
    model = DiT(DiTConfig(image_size=4, in_channels=2, width=8, depth=1, num_heads=2))
    torch.nn.init.normal_(model.final_layer.linear.weight)
    x, t, labels = torch.randn(2, 2, 4, 4), torch.tensor([3, 700]), torch.tensor([0, 9])
    assert FAMILY.parameterisation == "scheduler"
    assert FAMILY.encode is None
    assert torch.equal(FAMILY.predict(model, x, t, {"labels": labels}), model(x, t, labels))


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
        bind(model, site, lambda h, site=site: seen.update({site: h.shape[site.axis]}) or h)
    model(torch.randn(2, 2, 4, 4), torch.tensor([1, 2]), torch.tensor([0, 3]))
    assert seen == dict(host.sizes)
    assert all(
        p.size == seen[p.read] for b in host.blocks for p in b.positions.values() if p.read in seen
    )
