"""LoRA against its equation, against PEFT on the same network, and what its targets mean."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts import find_host
from smidgen.methods.configs import LoRAConfig
from smidgen.methods.lora import chosen
from tests.methods.equations import assert_same_output_and_gradients, dit
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.deltas import tiny_delta, trained_tensors
from tests.tiny.hosts import TINY_HOSTS, all_labels

WIDTH = 16


def _run(base, delta, classes):
    host = base.host.family
    inputs = TINY_HOSTS[host].inputs(all_labels(classes))
    with delta.attach(base.denoiser):
        return inputs, _tensor(base.denoiser(*inputs))


def _tensor(output):
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize("targets", [("q", "v"), ("q,v",), ("qkv",), ("k", "v", "q")])
def test_outputs_and_gradients_equal_the_equation(targets):
    base = law_base("dit")
    delta = tiny_delta(base, "lora", rank=3, alpha=6.0, targets=targets)
    inputs, output = _run(base, delta, NEW_CLASSES)
    d = trained_tensors(delta)

    def added(name, h):
        return 2.0 * (h @ d[f"{name}.down.weight"].T) @ d[f"{name}.up.weight"].T

    def qkv(n, read, output):
        name = f"blocks.{n}.attn.qkv.lora"
        if targets == ("qkv",):
            return output + added(name, read)
        parts = list(output.split(WIDTH, -1))
        for place, role in enumerate("qkv"):
            if role in ",".join(targets):
                parts[place] = parts[place] + added(f"{name}_{role}", read)
        return torch.cat(parts, -1)

    expected = dit(base.denoiser.state_dict(), d["label_table.rows"], *inputs, qkv=qkv)
    assert_same_output_and_gradients(delta, output, expected)


@pytest.mark.parametrize(
    ("targets", "theirs"),
    [
        (("q", "k", "v", "o"), ["to_q", "to_k", "to_v", "to_out.0"]),
        (("conv1", "conv2", "shortcut"), ["conv1", "conv2", "conv_shortcut"]),
    ],
    ids=["attention", "convolutions"],
)
def test_lora_equals_that_of_peft_with_the_same_weights(targets, theirs):
    base = law_base("unet")
    delta = tiny_delta(base, "lora", (), rank=2, alpha=3.0, targets=targets)
    inputs, output = _run(base, delta, ())
    config = LoraConfig(r=2, lora_alpha=3.0, target_modules=theirs)
    reference = inject_adapter_in_model(config, copy.deepcopy(base.denoiser)).double()
    trained = {}
    for name, tensor in trained_tensors(delta).items():
        module, _, leaf = name.partition(".lora.")
        part = {"down.weight": "lora_A", "up.weight": "lora_B"}[leaf]
        parameter = reference.get_parameter(f"{module}.{part}.default.weight")
        with torch.no_grad():
            parameter.copy_(tensor)
        trained[name] = parameter
    count = sum(p.numel() for p in reference.parameters() if p.requires_grad)
    assert delta.num_parameters() == count > 0
    expected = _tensor(reference(*inputs))
    assert not torch.allclose(_tensor(base.denoiser(*inputs)), expected)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)
    ours = torch.autograd.grad(output.square().sum(), list(trained_tensors(delta).values()))
    others = torch.autograd.grad(expected.square().sum(), list(trained.values()))
    for name, one, other in zip(trained, ours, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9, msg=name)


def test_the_start_is_peft_s_kaiming_down_and_zero_up():
    delta = tiny_delta(law_base("dit"), "lora", std=0.0, rank=200, targets=("ff2",))
    for name, tensor in trained_tensors(delta).items():
        if ".up." in name:
            assert not tensor.any()
        elif ".down." in name:
            bound = 1 / tensor.shape[1] ** 0.5  # kaiming uniform with a = sqrt 5
            assert tensor.abs().max() <= bound
            assert tensor.detach().std() == pytest.approx(bound / 3**0.5, rel=0.03)


def _modules(base, *targets):
    return [
        one.module + ("" if one.rows is None else f"[{one.role}]")
        for one in chosen(base.host, base.denoiser, targets)
    ]


def test_roles_are_of_every_attention_or_of_one_kind():
    base = law_base("unet")
    attentions = {
        name.rpartition(".")[0]
        for name, _ in base.denoiser.named_modules()
        if name.rpartition(".")[2] == "to_q"
    }
    assert set(_modules(base, "q")) == {f"{name}.to_q" for name in attentions}
    own = [f"{name}.to_q" for name in attentions if name.rpartition(".")[2] == "attn1"]
    assert set(_modules(base, "self.q")) == set(own)
    assert set(_modules(base, "cross.q")) == {f"{name}.to_q" for name in attentions} - set(own)
    assert len(_modules(base, "qkv")) == 3 * len(attentions)


@pytest.mark.parametrize("host", ["dit", "unet"])
def test_words_cover_each_linear_once(host):
    base = law_base(host)
    named = dict(base.denoiser.named_modules())
    linears = [name for name, module in named.items() if isinstance(module, torch.nn.Linear)]
    convs = [name for name, module in named.items() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(_modules(base, "linear")) == sorted(linears)
    assert sorted(_modules(base, "conv")) == sorted(convs)
    assert sorted(_modules(base, "all")) == sorted([*linears, *convs])
    assert _modules(base, linears[0], linears[-1]) == [linears[0], linears[-1]]


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(SmidgenError, match=r'no linear "values" in a dit base; .*"?q'):
        tiny_delta(law_base("dit"), "lora", targets=("values",))


def test_the_known_ones_are_few_enough_to_read():
    for target in ("cross.v", "blocks.0.attn.qvk", "blocks.0"):
        with pytest.raises(UsageError) as refusal:
            tiny_delta(law_base("dit"), "lora", targets=(target,))
        assert len(str(refusal.value)) < 150, refusal.value
        assert ('mean "blocks.0.attn.qkv"' in str(refusal.value)) == (target.endswith("qvk"))


@pytest.mark.parametrize(
    ("conv", "kind"),
    [
        (nn.Conv2d(4, 4, 1, groups=2), "grouped"),
        (nn.ConvTranspose2d(4, 4, 2, stride=2), "transposed"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padded by circular"),
    ],
)
def test_a_convolution_without_a_low_rank_of_its_own_is_left_out_and_refused_by_name(conv, kind):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), conv)
    host = find_host(model)
    assert [one.module for one in chosen(host, model, ["all"])] == ["0"]
    assert len(host.linears) == 2
    with pytest.raises(UsageError, match=rf"^1 is a .*{kind}.*, which LoRA cannot take"):
        chosen(host, model, ["1"])


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"targets": ()}])
def test_nonsense_is_refused(options):
    with pytest.raises(UsageError, match="expected"):
        LoRAConfig(**options)
