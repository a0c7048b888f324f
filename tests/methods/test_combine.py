"""Several methods as one delta."""

import dataclasses
import json

import pytest
import torch

from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import METHODS, configure, resolve
from smidgen.methods.build import build_delta
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS, all_labels


def _build(base, name, classes=NEW_CLASSES, std=0.0, **options):
    generator = torch.Generator().manual_seed(2)
    delta = build_delta(name, base, configure(name, options), classes, generator).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in delta.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise)
    return delta


def test_the_edits_of_both_are_there_in_order_with_one_label_table():
    base = law_base("dit")
    both = _build(base, "difffit+lora", difffit={"blocks": "all"}, lora={"rank": 2})
    difffit = _build(base, "difffit", blocks="all")
    lora = _build(base, "lora", rank=2)
    behind = [name for name in lora.edits if name != "label_table"]
    assert list(both.edits) == [*difffit.edits, *behind]
    assert both.specs() == difffit.specs() + [s for s in lora.specs() if s["name"] in behind]
    table = lora.edits["label_table"].rows.numel()
    assert both.num_parameters() == difffit.num_parameters() + lora.num_parameters() - table


def test_the_order_of_the_names_is_the_order_of_the_edits():
    base = law_base("dit")
    names = [list(_build(base, name).edits) for name in ("difffit+lora", "lora+difffit")]
    assert set(names[0]) == set(names[1])
    pair, gamma = "blocks.0.attn.qkv.lora_q", "blocks.0.attn.qkv.gamma"
    assert names[0].index(gamma) < names[0].index(pair)
    assert names[1].index(pair) < names[1].index(gamma)


def test_a_later_gamma_multiplies_what_an_earlier_lora_added_and_not_the_reverse():
    base = law_base("dit")
    inputs = TINY_HOSTS["dit"].inputs(all_labels(NEW_CLASSES))
    seen = {}
    for name in ("difffit+lora", "lora+difffit"):
        delta = _build(base, name, std=0.0)
        with torch.no_grad():
            delta.edits["blocks.0.attn.qkv.gamma"].gain.mul_(3)
            delta.edits["blocks.0.attn.qkv.lora_q"].body.up.weight.fill_(0.5)
        qkv = base.denoiser.blocks[0].attn.qkv
        with torch.no_grad(), delta.attach(base.denoiser):
            read = []
            handle = qkv.register_forward_pre_hook(lambda m, x, read=read: read.append(x[0]))
            after = qkv.register_forward_hook(lambda m, x, y, read=read: read.append(y))
            base.denoiser(*inputs)
            handle.remove()
            after.remove()
        h, output = read
        pair = delta.edits["blocks.0.attn.qkv.lora_q"].body
        added = h @ pair.down.weight.T @ pair.up.weight.T
        plain = h @ qkv.weight.T + qkv.bias
        outside, inside = 3 * plain[..., :16] + added, 3 * (plain[..., :16] + added)
        seen[name] = (output[..., :16], outside, inside)
    output, outside, inside = seen["difffit+lora"]
    torch.testing.assert_close(output, outside.detach())
    output, outside, inside = seen["lora+difffit"]
    torch.testing.assert_close(output, inside.detach())


@pytest.mark.parametrize("host", ["dit", "unet"])
@pytest.mark.parametrize("places", [("SA_out", "FFN_in"), ("SA_in", "Trans_out")])
def test_adapters_see_added_tokens_from_the_first_to_the_last_in_either_order(host, places):
    base, outputs = law_base(host), []
    inputs = TINY_HOSTS[host].inputs(all_labels(NEW_CLASSES))
    options = {"vpt": {"tokens": 2, "blocks": "all"}}
    options["adapter"] = dict(zip(("input_position", "output_position"), places, strict=True))
    classes = NEW_CLASSES if host == "dit" else ()
    start = _build(base, "vpt+adapter", classes, std=0.1, **options)
    for name in ("vpt+adapter", "adapter+vpt"):
        delta = _build(base, name, classes, **options)
        delta.load_state_dict(start.state_dict())
        with torch.no_grad(), delta.attach(base.denoiser):
            outputs.append(TINY_HOSTS[host].call(base.denoiser, *inputs))
    assert torch.equal(*outputs)


def test_edits_that_both_have_are_there_once():
    base = law_base("dit")
    assert _build(base, "difffit+bitfit").specs() == _build(base, "difffit").specs()


def test_provenance_has_the_options_by_method(tmp_path):
    provenance = _build(law_base("dit"), "lora+bitfit", lora={"rank": 2}).provenance
    assert provenance.method == "lora+bitfit"
    lora = {"rank": 2, "alpha": None, "targets": ["q", "v"]}
    assert provenance.config == {"lora": lora, "bitfit": {}}
    assert json.loads(json.dumps(provenance.config)) == provenance.config
    config = configure(provenance.method, provenance.config)
    assert dataclasses.asdict(config)["lora"]["targets"] == ("q", "v")


@pytest.mark.parametrize("host", ["dit", "unet"])
def test_all_small_methods_together_start_as_the_base(host):
    base = law_base(host)
    classes = ("ant", "bee", "cat") if host == "dit" else ()
    name = "difffit+adaptformer+lora+adapter"
    inputs = TINY_HOSTS[host].inputs(all_labels(classes))
    delta = _build(base, name, classes)
    with torch.no_grad():
        expected = base.denoiser(*inputs)
        with delta.attach(base.denoiser):
            output = base.denoiser(*inputs)
    expected, output = (y if isinstance(y, torch.Tensor) else y[0] for y in (expected, output))
    assert torch.equal(output, expected)


def test_the_learning_rate_is_the_smallest():
    assert resolve("lora+difffit").default_lr == METHODS["lora"].default_lr
    assert resolve("lora+full").default_lr == METHODS["full"].default_lr


@pytest.mark.parametrize("name", ["full+lora", "vpt+full", "bitfit+full"])
def test_two_ways_to_train_one_tensor_are_refused(name):
    with pytest.raises(SmidgenError, match=r"cannot be combined .* leave one of them out"):
        _build(law_base("dit"), name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("difffit+lorra", {}, 'unknown method "lorra"; did you mean "lora"'),
        ("lora+lora", {}, "names lora twice"),
        ("lora+", {}, 'unknown method ""'),
        ("difffit+lora", {"rank": 3}, r'difffit\+lora: unknown option "rank"'),
        ("difffit+lora", {"lora": {"rnak": 3}}, 'unknown option "lora.rnak"; .*"lora.rank"'),
        ("difffit+lora", {"lora": {"rank": "a"}}, 'lora.rank is "a"; expected an integer'),
        ("difffit+lora", {"lora": {"rank": 0}}, "rank is 0"),
        ("difffit+lora", {"lora": 3}, "lora is 3; expected its options"),
    ],
)
def test_misuse_is_refused_by_name(name, options, message):
    with pytest.raises(UsageError, match=message):
        configure(name, options)


def test_a_single_method_is_itself():
    for name, method in METHODS.items():
        assert resolve(name) is method
    config = tiny_delta(law_base("dit"), "lora", rank=3).provenance.config
    assert configure("lora", config).rank == 3
