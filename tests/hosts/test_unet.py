"""The host of Stable Diffusion's UNets against diffusers' own modules."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from smidgen.core.fold import IntoLinear
from smidgen.core.sites import bind
from smidgen.errors import SmidgenError
from smidgen.hosts.unet import FAMILY, residual_block, transformer_block
from smidgen.hosts.unet import host as unet_host
from smidgen.sizes import ImageSize
from tests.tiny.networks import network
from tests.tiny.weights import moved

TEXT = 6


@pytest.fixture
def model():
    torch.manual_seed(0)
    unet = network("unet").double().requires_grad_(False)
    moved(unet, 0.1, seed=1)
    return unet


@pytest.fixture
def sdxl():
    """SDXL's conditions and projections, with two transformer blocks in each attention."""
    torch.manual_seed(0)
    return network(
        "unet",
        use_linear_projection=True,
        transformer_layers_per_block=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 5,
    ).requires_grad_(False)


def _inputs(dtype=torch.float64):
    torch.manual_seed(2)
    x, text = torch.randn(2, 4, 4, 4, dtype=dtype), torch.randn(2, 3, TEXT, dtype=dtype)
    return x, torch.tensor([3, 700]), text


def test_blocks_are_in_the_order_in_which_they_run(model):
    blocks, called = unet_host(model).blocks, []
    for block in blocks:
        model.get_submodule(block.module).register_forward_pre_hook(
            lambda module, inputs, name=block.module: called.append(name)
        )
    model(*_inputs())
    assert called == [block.module for block in blocks]
    assert [block.kind[0] for block in blocks] == list("rtrrtrrrrtrt")


def test_sizes_are_those_of_the_activations(model):
    host, seen = unet_host(model), {}
    for site in host.sizes:
        bind(model, site, lambda h, site=site: seen.update({site: h.shape[site.axis]}) or h)
    model(*_inputs())
    assert seen == dict(host.sizes)


def test_every_linear_has_one_entry_for_an_image(sdxl):
    """Also those of its six numbers of sizes, which a bank would otherwise mix up."""
    host, entries = unet_host(sdxl), set()
    for linear in host.linears:
        layer = sdxl.get_submodule(linear.module)
        layer.register_forward_hook(lambda m, x, y: entries.add(len(y)))
    x, t, text = _inputs(torch.float32)
    condition = {"text": text, "pooled": torch.randn(2, 5), "time_ids": torch.randn(2, 6)}
    FAMILY.predict(sdxl, x, t, condition)
    assert entries == {2}
    assert {linear.repeats for linear in host.linears} == {1}


def test_every_parameter_is_a_bias_a_norms_weight_or_a_linears(model, sdxl):
    for unet in (model, sdxl):
        host = unet_host(unet)
        biases = [f"{site.module}.bias" for site in host.biases]
        weights = [f"{site.module}.weight" for site in host.norms]
        weights += [f"{linear.module}.weight" for linear in host.linears]
        assert sorted(biases + weights) == sorted(name for name, _ in unet.named_parameters())
        assert host.bare_norms == host.untouched == ()


def test_roles_name_the_linears_of_each_block(model):
    host = unet_host(model)
    for linear in host.linears:
        if linear.block is None:
            assert linear.role == "other"
        else:
            assert linear.module.startswith(host.blocks[linear.block].module)
    kinds = {"transformer": 10, "residual": 2}
    for index, block in enumerate(host.blocks):
        roles = [x.role for x in host.linears if x.block == index and x.role != "other"]
        assert len(set(roles)) == len(roles)
        assert len(set(roles) - {"shortcut"}) == kinds[block.kind]


def test_a_sub_layer_folds_into_its_last_linear(model):
    host = unet_host(model)
    block = next(block for block in host.blocks if block.kind == "transformer")
    for tap, last in {
        "attn.out": "attn1.to_out.0",
        "cross.out": "attn2.to_out.0",
        "ff.out": "ff.net.2",
    }.items():
        name = f"{block.module}.{last}"
        assert host.folds[block.taps[tap]] == IntoLinear(f"{name}.weight", f"{name}.bias")
    query = block.taps["attn.q.out"]
    assert host.folds[query] == IntoLinear(f"{query.module}.weight", None)


def _transformer() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=TEXT).double().requires_grad_(False)
    moved(block, 0.3, seed=4)
    return nn.ModuleDict({"block": block}), block


def _transformer_written_out(block, x, text, add):
    """Section 2.1 of the adapter paper's block: every position's tensor, `add` by name added."""
    seen = {}

    def at(name, tensor):
        seen[name] = tensor
        return tensor + add.get(name, 0)

    x = at("SA_in", x)
    a = at("SA_out", block.attn1(block.norm1(x)))
    x = at("CA_in", a + x)
    text = at("CA_c", text)
    c = at("CA_out", block.attn2(block.norm2(x), encoder_hidden_states=text))
    x = at("FFN_in", c + x)
    f = at("FFN_out", block.ff(block.norm3(x)))
    return seen, at("Trans_out", f + x)


def test_positions_read_what_the_written_out_block_has_there():
    holder, block = _transformer()
    x, text = torch.randn(2, 5, 8).double(), torch.randn(2, 3, TEXT).double()
    expected, _ = _transformer_written_out(block, x, text, {})
    positions, seen = transformer_block("block", block).positions, {}
    for name, position in positions.items():
        bind(holder, position.read, lambda h, name=name: seen.update({name: h}) or h)
    block(x, encoder_hidden_states=text)
    assert list(seen) == list(expected) == list(positions)
    for name, tensor in expected.items():
        torch.testing.assert_close(seen[name], tensor, atol=1e-12, rtol=1e-12)
        assert tensor.shape[-1] == positions[name].size


@pytest.mark.parametrize("name", ["SA_in", "CA_in", "CA_c", "FFN_in", "Trans_out"])
def test_adding_at_a_position_equals_the_block_written_out(name):
    holder, block = _transformer()
    x, text = torch.randn(2, 5, 8).double(), torch.randn(2, 3, TEXT).double()
    added = torch.randn(text.shape if name == "CA_c" else x.shape).double()
    _, expected = _transformer_written_out(block, x, text, {name: added})
    for site in transformer_block("block", block).positions[name].writes:
        bind(holder, site, lambda h: h + added)
    output = block(x, encoder_hidden_states=text)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)


def test_nothing_may_be_added_at_the_other_positions():
    _, block = _transformer()
    positions = transformer_block("block", block).positions
    silent = {name for name, position in positions.items() if not position.writes}
    assert silent == {"SA_out", "CA_out", "FFN_out"}


@pytest.mark.parametrize("name", ["Res_in", "Res_out"])
def test_adding_at_a_residual_position_equals_the_block_written_out(name):
    torch.manual_seed(5)
    block = ResnetBlock2D(in_channels=4, out_channels=6, temb_channels=5, groups=2).double()
    holder = nn.ModuleDict({"block": block.requires_grad_(False)})
    x, time = torch.randn(2, 4, 3, 3).double(), torch.randn(2, 5).double()
    added = torch.randn(2, 4 if name == "Res_in" else 6, 3, 3).double()
    silu = nn.functional.silu

    start = x + added if name == "Res_in" else x
    h = block.conv1(silu(block.norm1(start)))
    h = h + block.time_emb_proj(silu(time))[:, :, None, None]
    expected = block.conv2(silu(block.norm2(h))) + block.conv_shortcut(start)
    expected = expected + added if name == "Res_out" else expected

    position = residual_block("block", block).positions[name]
    assert position.size == added.shape[1]
    for site in position.writes:
        bind(holder, site, lambda h: h + added)
    torch.testing.assert_close(block(x, time), expected, atol=1e-12, rtol=1e-12)


def test_the_network_is_called_with_text(model):
    x, t, text = _inputs()
    expected = model(x, t, text).sample
    assert torch.equal(FAMILY.predict(model, x, t, {"text": text}), expected)
    with pytest.raises(SmidgenError, match='needs "text"'):
        FAMILY.predict(model, x, t, {"labels": t})


def test_sdxl_is_called_with_pooled_text_and_sizes(sdxl):
    x, t, text = _inputs(torch.float32)
    pooled, sizes = torch.randn(2, 5), torch.tensor([[512, 512, 0, 0, 512, 512]] * 2)
    added = {"text_embeds": pooled, "time_ids": sizes}
    expected = sdxl(x, t, text, added_cond_kwargs=added).sample
    condition = {"text": text, "pooled": pooled, "time_ids": sizes}
    assert torch.equal(FAMILY.predict(sdxl, x, t, condition), expected)
    assert not torch.equal(FAMILY.predict(sdxl, x, t, condition | {"pooled": -pooled}), expected)


class Pipeline:
    """What `encode` uses of a pipeline: components, configuration, prompts encoded by length."""

    def __init__(self, *, xl, zeros=False):
        self.components = {"text_encoder": self} | ({"text_encoder_2": self} if xl else {})
        self.config = SimpleNamespace(force_zeros_for_empty_prompt=zeros)
        self.text_encoder, self.device, self.xl = self, torch.device("cpu"), xl

    def encode_prompt(self, prompt, device, num_images_per_prompt, do_classifier_free_guidance):
        assert (num_images_per_prompt, do_classifier_free_guidance) == (1, False)
        text = torch.tensor([1.0 + len(p) for p in prompt])[:, None, None].expand(-1, 3, TEXT)
        return (text, None, 2 * text[:, 0], None) if self.xl else (text, None)


def test_prompts_are_encoded_by_the_pipeline():
    found = FAMILY.encode(Pipeline(xl=False), ("ab", ""), 512)
    assert list(found) == ["text"]
    assert found["text"][:, 0, 0].tolist() == [3, 1]


@pytest.mark.parametrize("zeros", [False, True])
def test_sdxl_prompts_come_with_pooled_text_and_the_size(zeros):
    found = FAMILY.encode(
        Pipeline(xl=True, zeros=zeros), ("ab", ""), ImageSize(width=512, height=768)
    )
    assert found["text"][:, 2, 5].tolist() == [3, 0 if zeros else 1]
    assert found["pooled"][:, 0].tolist() == [6, 0 if zeros else 2]
    assert found["time_ids"].tolist() == [[768, 512, 0, 0, 768, 512]] * 2
