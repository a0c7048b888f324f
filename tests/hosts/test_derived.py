"""Hosts derived from modules: AuraFlow and Lumina2, which have no table, and some written here."""

import pytest
import torch
from torch import nn

from smidgen.core.fold import fold
from smidgen.errors import SmidgenError
from smidgen.hosts.derived import host as derived_host
from smidgen.hosts.host import find_host
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS, all_labels

DERIVED = ("auraflow", "lumina2")
CLASSES = ("a", "b")


@pytest.fixture(params=DERIVED)
def base(request):
    return law_base(request.param)


def test_every_bias_norm_and_linear_is_listed(base):
    model, host = base.denoiser, base.host
    biases = {name for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    assert {f"{site.module}.bias" for site in host.biases} == biases
    norms = {n for n, m in model.named_modules() if hasattr(m, "eps") and not m._modules}
    assert {site.module for site in (*host.norms, *host.bare_norms)} == norms
    assert {linear.module for linear in host.linears} == {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    assert all(model.get_submodule(site.module).weight is None for site in host.bare_norms)


def test_parameters_without_a_site_are_listed():
    assert set(law_base("auraflow").host.untouched) == {"register_tokens", "pos_embed.pos_embed"}
    assert law_base("lumina2").host.untouched == ()


def test_blocks_are_the_modules_that_hold_an_attention():
    aura, lumina = (law_base(name).host for name in DERIVED)
    joint, single = aura.blocks
    assert joint.module == "joint_transformer_blocks.0"
    assert {
        name: site.module.removeprefix(f"{joint.module}.") for name, site in joint.taps.items()
    } == {
        "attn.q.out": "attn.to_q",
        "attn.k.out": "attn.to_k",
        "attn.v.out": "attn.to_v",
        "attn.out": "attn.to_out.0",
        "text.attn.out": "attn.to_add_out",
        "ff.out": "ff.out_projection",
        "text.ff.out": "ff_context.out_projection",
    }
    assert single.module == "single_transformer_blocks.0"
    names = ["noise_refiner.0", "context_refiner.0", "layers.0"]
    assert [block.module for block in lumina.blocks] == names
    assert lumina.blocks[2].taps["ff.out"].module == "layers.0.feed_forward.linear_2"


@pytest.mark.parametrize("method", ["bitfit", "lora", "difffit"])
def test_every_tensor_of_a_method_gets_a_gradient(base, method):
    delta = tiny_delta(base, method)
    tiny = TINY_HOSTS[base.name.removeprefix("tiny-")]
    inputs = tiny.inputs(all_labels(CLASSES))
    with delta.attach(base.denoiser):
        output = tiny.call(base.denoiser, *inputs)
    output.square().sum().backward()
    for name, parameter in delta.named_parameters():
        if name.removesuffix(".offset") not in tiny.without_gradient:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("method", ["adapter", "adaptformer", "vpt"])
def test_a_method_that_needs_the_data_flow_is_refused_with_the_reason(base, method):
    with pytest.raises(SmidgenError, match=r"docs/add-a-host\.md"):
        build_delta(method, base, configure(method), (), torch.Generator())


def test_a_created_affine_is_refused_for_folding_with_the_reason(base):
    delta = tiny_delta(base, "difffit", gammas=(), biases=False)
    with pytest.raises(SmidgenError, match="what uses the output of a norm is unknown"):
        fold(delta, base.denoiser.state_dict(), base.host.folds)


class Encoder(nn.Module):
    """What is called through functions, normalises two axes or returns transposed channels."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm((3, 8))
        self.grow = nn.ConvTranspose1d(8, 8, 1)
        self.table = nn.Embedding(3, 8)

    def forward(self, x):
        h = self.norm(self.attend(x, x, x)[0]) + self.table(torch.arange(3))
        return self.grow(h.transpose(1, 2))


def test_what_no_hook_would_reach_is_untouched_and_not_listed():
    model = Encoder()
    host = derived_host(model)
    assert [site.module for site in host.biases] == ["grow"]
    assert [linear.module for linear in host.linears] == ["grow"]
    assert host.folds == {}
    assert set(host.untouched) == {
        "attend.in_proj_weight", "attend.in_proj_bias", "norm.weight", "norm.bias",
        "attend.out_proj.weight", "attend.out_proj.bias",
    }  # fmt: skip


def test_feed_forwards_are_known_by_the_names_of_their_linears():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(4, 4) for _ in range(4))

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
            self.down_proj = nn.Linear(6, 4)

    layer = nn.ModuleDict({"norm": nn.LayerNorm(4), "self_attn": Attention(), "mlp": Gated()})
    host = find_host(nn.Sequential(layer))
    (block,) = host.blocks
    assert block.module == "0"
    assert block.taps["attn.out"].module == "0.self_attn.o_proj"
    assert block.taps["ff.out"].module == "0.mlp.down_proj"
    roles = {x.module: x.role for x in host.linears}
    assert roles["0.mlp.gate_proj"] == roles["0.mlp.up_proj"] == "ff1"
    assert roles["0.self_attn.q_proj"] == "q"
