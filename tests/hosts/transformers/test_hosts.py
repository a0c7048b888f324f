"""The hosts of diffusers' transformers against the models themselves."""

from typing import Any

import pytest
import torch
from torch import nn

from smidgen.core.fold import IntoLinear, IntoModulation, Refused
from smidgen.core.sites import bind
from smidgen.hosts.host import find_family, find_host
from tests.hosts.transformers import written_out
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import conditions, latents, times
from tests.tiny.networks import SD_3_5, network

TRANSFORMERS = ("pixart", "sd3", "flux", "sana", "flux2", "qwen_image")
VARIANTS = {family: (family, {}) for family in TRANSFORMERS} | {"sd3.5": ("sd3", SD_3_5)}
SHARED = ("pixart", "sana", "flux2")  # families whose blocks share one modulation
CLOSE: dict[str, Any] = {
    "atol": 1e-5,
    "rtol": 1e-5,
}  # rotary embeddings and RMS norms compute in float32


@pytest.fixture(params=VARIANTS)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    name, config = VARIANTS[family]
    return network(name, **config).double()


@pytest.fixture
def host(model):
    return find_host(model)


def run(family, model):
    name = VARIANTS[family][0]
    labels = torch.arange(3)
    condition = conditions(name, labels)
    with torch.no_grad():
        return find_family(model).predict(model, latents(name, 3), times(name, 3), condition)


def owned(model, leaf):
    return [n for n, m in model.named_modules() if m._parameters.get(leaf) is not None]


def is_norm(module):
    return type(module).__name__ in ("LayerNorm", "RMSNorm", "GroupNorm")


def test_every_site_is_reached_with_its_channels(family, model, host):
    seen = {}
    for site in host.sizes:
        bind(model, site, lambda y, site=site: seen.update({site: y.shape[site.axis]}) or y)
    run(family, model)
    assert seen == dict(host.sizes)


def test_what_belongs_to_one_image_is_as_much_as_its_site_says(family, model, host):
    repeats = {linear.module: linear.repeats for linear in host.linears}
    repeats |= {site.module: site.repeats for site in (*host.biases, *host.norms)}
    entries = {}
    for name in repeats:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, x, y, name=name: entries.update({name: len(y)}))
    run(family, model)
    assert entries == {name: 3 * number for name, number in repeats.items()}
    expected = [1, 2] if family == "pixart" else [1]  # its size is a height and a width
    assert sorted(set(repeats.values())) == expected


def test_every_tap_has_a_size_and_every_output_a_fold_target(host):
    for taps in (host.taps, *(block.taps for block in host.blocks)):
        for name, site in taps.items():
            assert site in host.sizes or name in ("ff.in", "text.ff.in")
            if site.end == "out" and name != "block.out":
                assert site in host.folds, name


def test_biases_norms_and_linears_are_those_of_the_model(model, host):
    assert [site.module for site in host.biases] == owned(model, "bias")
    norms = [name for name, module in model.named_modules() if is_norm(module)]
    weighted = set(owned(model, "weight"))
    assert [site.module for site in host.norms] == [n for n in norms if n in weighted]
    assert [site.module for site in host.bare_norms] == [n for n in norms if n not in weighted]
    whole = [(x.module, x.size_in, x.size_out) for x in host.linears if x.rows is None]
    assert whole == [
        (name, module.weight.shape[1] * getattr(module, "groups", 1), module.weight.shape[0])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]


def test_untouched_parameters_are_the_tables_that_no_module_returns(family, model, host):
    tables = [n for n, _ in model.named_parameters() if n.split(".")[-1] == "scale_shift_table"]
    assert sorted(host.untouched) == sorted(tables)
    assert (len(tables) > 0) == (family in ("pixart", "sana"))


def test_blocks_are_those_of_the_model_in_the_order_in_which_they_run(family, model, host):
    order = []
    for block in host.blocks:
        hook = model.get_submodule(block.module).register_forward_hook
        hook(lambda module, arguments, output, name=block.module: order.append(name))
    run(family, model)
    assert order == [block.module for block in host.blocks]
    assert len(order) == 2
    kinds = {"flux": ["transformer", "single"], "flux2": ["transformer", "single"]}
    assert [block.kind for block in host.blocks] == kinds.get(family, ["transformer"] * 2)


def test_only_these_methods_are_refused(family, host):
    expected = {"flux": {"vpt"}, "sana": {"vpt"}, "flux2": {"vpt", "bitfit"}}
    assert set(host.refusals) == expected.get(family, set())
    takes_tokens = all(block.tokens is not None for block in host.blocks)
    assert takes_tokens == ("vpt" not in host.refusals)
    assert (host.biases == ()) == ("bitfit" in host.refusals)


def test_the_last_sd3_block_has_no_text_behind_its_attention():
    host = find_host(network("sd3"))
    texts = [[name for name in block.taps if name.startswith("text")] for block in host.blocks]
    assert texts == [["text.attn.out", "text.ff.in", "text.ff.out"], []]


def test_roles_name_every_projection_of_a_block(family, host):
    roles = {linear.role for linear in host.linears if linear.block is not None}
    expected = {"q", "k", "v", "o", "ff1", "ff2"}
    if family in ("pixart", "sana"):
        expected |= {"cross.q", "cross.k", "cross.v", "cross.o"}
    else:
        expected |= {f"text.{role}" for role in expected}
    assert roles - {"other"} == expected


def test_rows_of_flux2s_fused_projection_are_queries_keys_values_and_feed_forward():
    model = network("flux2").double()
    host, seen = find_host(model), {}
    name = "single_transformer_blocks.0.attn"
    attention: Any = model.get_submodule(name)

    def keep(key):
        return lambda module, arguments, output: seen.update({key: arguments[0]})

    attention.norm_q.register_forward_hook(keep("q"))
    attention.norm_k.register_forward_hook(keep("k"))
    attention.mlp_act_fn.register_forward_hook(keep("ff1"))
    attention.to_qkv_mlp_proj.register_forward_hook(
        lambda module, arguments, output: seen.update(all=output)
    )
    run("flux2", model)
    fused = [x for x in host.linears if x.module == f"{name}.to_qkv_mlp_proj"]
    rows = {x.role: x.rows for x in fused if x.rows is not None}
    assert set(rows) == {"q", "k", "v", "ff1"}
    assert [x.role for x in fused if x.rows is None] == ["other"]
    for role in ("q", "k", "ff1"):
        part = seen["all"][..., slice(*rows[role])]
        assert torch.equal(part, seen[role].flatten(2))
    assert rows["v"] == (rows["k"][1], rows["ff1"][0])


def references(family, block):
    """How this block is written out."""
    if block.kind == "single":
        return getattr(written_out, f"{family}_single")
    if family == "sd3.5" and block.module.endswith(".0"):
        return written_out.sd3_dual
    return written_out.flux if family.startswith("sd3") else getattr(written_out, family)


def captured(family, model, block):
    """The arguments with which the model calls this block."""
    calls = []
    module = model.get_submodule(block.module)
    hook = module.register_forward_pre_hook(
        lambda module, arguments, named: calls.append((arguments, named)), with_kwargs=True
    )
    run(family, model)
    hook.remove()
    return module, *calls[0]


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_read_at_a_position_is_what_the_block_written_out_has_there(
    family, model, host, number
):
    block = host.blocks[number]
    module, arguments, named = captured(family, model, block)
    expected, read = {}, {}
    references(family, block)(
        module, lambda name, x: expected.update({name: x}) or x, *arguments, **named
    )
    assert list(block.positions) == list(expected)
    for name, position in block.positions.items():
        bind(model, position.read, lambda x, name=name: read.update({name: x}) or x)
    module(*arguments, **named)
    for name, value in expected.items():
        tokens = read[name].flatten(2).transpose(1, 2) if read[name].ndim == 4 else read[name]
        torch.testing.assert_close(tokens, value, msg=name, **CLOSE)


@pytest.mark.parametrize("number", [0, 1])
def test_adding_at_a_position_is_adding_in_the_block_written_out(family, model, host, number):
    block = host.blocks[number]
    module, arguments, named = captured(family, model, block)
    reference = references(family, block)
    plain = reference(module, lambda name, x: x, *arguments, **named)
    for name, position in block.positions.items():
        if not position.writes:
            continue

        def added(x, size=position.size):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(size))
            return x + noise.to(x)

        handles = [bind(model, site, added) for site in position.writes]
        output = module(*arguments, **named)
        for handle in handles:
            handle.remove()
        output = output[1] if isinstance(output, tuple) else output
        expected = reference(
            module, lambda at, x, name=name: added(x) if at == name else x, *arguments, **named
        )
        torch.testing.assert_close(output, expected, msg=name, **CLOSE)
        assert (expected - plain).abs().max() > 1e-3, name


def test_what_may_be_added_to_is_what_the_paper_adds_to(host):
    for block in host.blocks:
        writable = [name for name, position in block.positions.items() if position.writes]
        outputs = ("SA_in", "CA_in", "CA_c", "FFN_in", "Trans_out")
        assert writable == [name for name in outputs if name in block.positions]
        assert all(position.form == "tokens" for position in block.positions.values())


def test_a_created_affine_folds_into_the_modulation_of_its_norm(family, model, host):
    """z * w + b before z * (1 + scale) + shift, in the norm as by IntoModulation in the weights."""
    generator = torch.Generator().manual_seed(4)
    folded = type(model).from_config(model.config).double()
    state, handles = {k: v.clone() for k, v in model.state_dict().items()}, []
    for site in host.bare_norms:
        target = host.folds[site]
        if not isinstance(target, IntoModulation):
            continue
        gain, offset = torch.randn(2, host.sizes[site], generator=generator).double()
        handles.append(bind(model, site, lambda z, w=gain, b=offset: z * w + b))
        weight, bias = state[target.weight], state[target.bias]
        shift, scale = slice(*target.shift), slice(*target.scale)
        weight[shift] += offset[:, None] * weight[scale]
        bias[shift] += offset + offset * bias[scale]
        weight[scale] *= gain[:, None]
        bias[scale] = gain * bias[scale] + gain - 1
    folded.load_state_dict(state)
    attached = run(family, model)
    torch.testing.assert_close(run(family, folded.eval()), attached, **CLOSE)
    assert len(handles) == sum(isinstance(host.folds[s], IntoModulation) for s in host.bare_norms)
    if family in SHARED:
        assert not handles
    for handle in handles:
        handle.remove()
    if handles:
        assert (run(family, model) - attached).abs().max() > 1e-2


def test_only_norms_without_a_modulation_of_their_own_are_refused_with_the_reason(family, host):
    refused = [site.module for site in host.folds if isinstance(host.folds[site], Refused)]
    if family in SHARED:
        assert refused == [site.module for site in host.bare_norms]
    else:
        assert refused == (["transformer_blocks.0.norm1.norm"] if family == "sd3.5" else [])
    assert all(host.folds[s].reason for s in host.folds if isinstance(host.folds[s], Refused))


def test_fold_targets_name_tensors_of_the_model(model, host):
    state = model.state_dict()
    for site, target in host.folds.items():
        if isinstance(target, IntoLinear):
            assert state[target.weight].shape[0] == host.sizes[site]
            assert target.bias is None or state[target.bias].numel() == host.sizes[site]
            assert (target.bias is None) == (target.weight[:-6] + "bias" not in state)


def test_a_sub_layers_output_is_that_of_the_linear_into_which_it_folds(family, model, host):
    generator = torch.Generator().manual_seed(4)
    taps = ("attn.out", "cross.out", "ff.out", "proj.out", "text.attn.out", "text.ff.out")
    sites = [block.taps[tap] for block in host.blocks for tap in taps if tap in block.taps]
    gains = {site: torch.randn(host.sizes[site], generator=generator).double() for site in sites}
    plain = run(family, model)
    handles = [
        bind(model, site, lambda y, g=gain, a=site.axis: (y.movedim(a, -1) * g).movedim(-1, a))
        for site, gain in gains.items()
    ]
    attached = run(family, model)
    for handle in handles:
        handle.remove()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for site, gain in gains.items():
        target = host.folds[site]
        state[target.weight] *= gain.view(-1, *(1,) * (state[target.weight].ndim - 1))
        if target.bias is not None:
            state[target.bias] *= gain
    model.load_state_dict(state)
    torch.testing.assert_close(run(family, model), attached, **CLOSE)
    assert (attached - plain).abs().max() > 1e-2


def test_what_sanas_feed_forward_returns_is_added_to_its_stream_token_by_token():
    base = law_base("sana")
    places = {"input_position": "FFN_out", "output_position": "Trans_out"}
    delta = tiny_delta(base, "adapter", **places, activation="silu")
    with delta.attach(base.denoiser):
        output = run("sana", base.denoiser)
    kept: dict[str, torch.Tensor] = {}
    for block, edit in zip(base.host.blocks, delta.edits.values(), strict=True):
        p = dict(edit.named_parameters())

        def keep(module, arguments, y, name=block.module):
            kept[name] = y.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)

        def add(module, arguments, y, name=block.module, p=p):
            z = nn.functional.silu(kept[name] @ p["down.weight"].T + p["down.bias"])
            return y + z @ p["up.weight"].T + p["up.bias"]

        base.denoiser.get_submodule(f"{block.module}.ff").register_forward_hook(keep)
        base.denoiser.get_submodule(block.module).register_forward_hook(add)
    torch.testing.assert_close(run("sana", base.denoiser), output, **CLOSE)
