"""The laws of a delta, with every tensor of base and delta random; conftest.py says on what."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.testing import CompileCounter

from smidgen.core.bypass import Bypass
from smidgen.core.delta import Delta
from smidgen.core.edits import Shift
from smidgen.core.fold import fold
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from tests.laws.refusals import NOT_AT_THE_BASE, NOT_COMPILED, NOT_FOLDED, REFUSED, reason
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES, law_base
from tests.tiny.deltas import tiny_delta, trained_tensors
from tests.tiny.hosts import TINY_HOSTS, all_labels

ROUNDING = 1e-12  # float64, a few dozen operations on numbers of size one


def _gradients(case, delta, model=None):
    """Gradients of a loss that weighs every output differently; zero for what takes no part."""
    output = case.call(model)
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view_as(output)
    tensors = trained_tensors(delta)
    found = torch.autograd.grad(
        (output * weights).square().sum(), list(tensors.values()), allow_unused=True
    )
    gradients = {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
    }
    return output.detach(), gradients


def _resting(delta: Delta, gradients: dict[str, Tensor], name: str) -> Tensor:
    """Which elements belong to hidden units that ReLU keeps at zero for all inputs: few, and with
    everything that reads or writes them.
    """
    resting = torch.zeros_like(gradients[name], dtype=torch.bool)
    edit, end, leaf = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
    bypass = delta.edits.get(edit)
    if not isinstance(bypass, Bypass) or bypass.body.activation != "relu" or end == "norm":
        return resting
    units = ~gradients[f"{edit}.down.weight"].flatten(1).any(1)
    assert units.sum() < 0.5 * len(units), f"{edit}: most units take no part"
    if end == "down":
        resting[units] = True
    elif leaf == "weight":
        resting[:, units] = True
    return resting


def _snapshot(model: nn.Module) -> tuple[dict, dict]:
    """Everything of a model that attaching, training and detaching could leave behind."""
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts = {
        name: (id(p), p.data_ptr(), p.requires_grad, p.grad) for name, p in model.named_parameters()
    }
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        facts[f"module {name}"] = (type(module), module.training, list(vars(module)), hooks)
    return values, facts


@pytest.mark.excepting(NOT_AT_THE_BASE)
def test_the_start_is_the_base(case):
    case.use_labels(all_labels(KNOWN_CLASSES))
    with torch.no_grad():
        expected = case.call()
    output = case.attached(case.make(classes=KNOWN_CLASSES, std=0.0))
    if case.method == "full":  # equal copies lie elsewhere, on which a product's last bit depends
        case.assert_close(output, expected)
    else:
        assert torch.equal(output, expected)


@pytest.mark.excepting(NOT_AT_THE_BASE)
@pytest.mark.labelled
def test_the_start_with_new_classes_is_the_base_for_known_classes_and_null(case):
    start = case.make(std=0.0)
    known, null = NEW_CLASSES.index("bee"), len(NEW_CLASSES)
    old_known, old_null = KNOWN_CLASSES.index("bee"), len(KNOWN_CLASSES)
    case.use_labels(torch.tensor([old_known, old_null]))
    with torch.no_grad():
        expected = case.call()
    case.use_labels(torch.tensor([known, null]))
    assert torch.equal(case.attached(start), expected)


def test_training_leaves_the_base_bit_for_bit(case):
    values, facts = _snapshot(case.model)
    start = {name: tensor.detach().clone() for name, tensor in trained_tensors(case.delta).items()}
    with case.delta.attach(case.model):
        optimizer = torch.optim.AdamW(case.delta.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            case.call().square().sum().backward()
            optimizer.step()
    values_after, facts_after = _snapshot(case.model)
    assert facts_after == facts
    assert list(values_after) == list(values)
    for name, tensor in values_after.items():
        assert torch.equal(tensor.view(torch.uint8), values[name].view(torch.uint8)), name
    for name, tensor in trained_tensors(case.delta).items():
        if case.tiny.alive(name, tensor).any():
            assert not torch.equal(tensor, start[name]), f"{name} did not train"


def test_every_trained_element_gets_a_gradient_and_the_base_none(case):
    with case.delta.attach(case.model):
        _, gradients = _gradients(case, case.delta)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        flat = gradient.flatten()
        alive = case.tiny.alive(name, gradient) & ~_resting(case.delta, gradients, name).flatten()
        assert (flat[~alive].abs() < ROUNDING * largest).all(), name
        scale = flat.abs().max()
        assert not alive.any() or flat[alive].abs().min() > 0.01 * ROUNDING * scale, (
            f"{name} has elements without gradient"
        )
    assert all(p.grad is None and not p.requires_grad for p in case.model.parameters())


def test_a_loaded_delta_equals_the_saved_one(case, tmp_path):
    case.delta.save(tmp_path / "delta.safetensors")
    loaded = Delta.load(tmp_path / "delta.safetensors")
    assert loaded.provenance == case.delta.provenance
    assert loaded.num_parameters() == case.delta.num_parameters()
    assert torch.equal(case.attached(loaded), case.attached())


def test_detaching_restores_the_output(case):
    case.use_labels(all_labels(KNOWN_CLASSES))
    with torch.no_grad():
        before = case.call()
        assert not torch.equal(case.attached(), before)
        assert torch.equal(case.call(), before)


@pytest.mark.excepting(NOT_FOLDED)
def test_the_folded_base_equals_the_attached_delta(case):
    folded = case.tiny.make(len(NEW_CLASSES)).double()
    folded.load_state_dict(fold(case.delta, case.model.state_dict(), case.base.host.folds))
    with torch.no_grad():
        output = case.call(folded)
    case.assert_close(output, case.attached())


def test_gradient_checkpointing_changes_nothing(case):
    with case.delta.attach(case.model):
        output, gradients = _gradients(case, case.delta)
        case.tiny.checkpoint(case.model)
        again, gradients_again = _gradients(case, case.delta)
    assert torch.equal(again, output)
    for name, gradient in gradients.items():
        assert torch.equal(gradients_again[name], gradient), name


def test_gradient_checkpointing_works_in_the_first_forward(case):
    with case.delta.attach(case.model):
        output, _ = _gradients(case, case.delta)
    case.tiny.checkpoint(case.model)
    with case.delta.attach(case.model):
        assert torch.equal(_gradients(case, case.delta)[0], output)


@pytest.mark.slow
@pytest.mark.excepting(NOT_COMPILED)
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiling_changes_nothing(case, first):
    """Whether the network is called or compiled first."""
    torch._dynamo.reset()
    counter = CompileCounter()  # a backend that runs what it is given eagerly
    results = {}
    with case.delta.attach(case.model):
        compiled = torch.compile(case.model, fullgraph=True, backend=counter)
        models = {"eager": case.model, "compiled": compiled}
        for name in sorted(models, key=lambda name: name != first):
            results[name] = _gradients(case, case.delta, models[name])
            _gradients(case, case.delta, models[name])
    assert counter.frame_count == 1  # one graph, never compiled again
    (output, gradients), (again, gradients_again) = results["eager"], results["compiled"]
    case.assert_close(again, output)
    for name, gradient in gradients.items():
        atol = case.tiny.rounding * gradient.abs().max().item()
        torch.testing.assert_close(
            gradients_again[name], gradient, atol=atol, rtol=1e-9, msg=f"gradient of {name}"
        )


def test_a_bf16_base_works(case):
    case.use_labels(all_labels(KNOWN_CLASSES))
    case.delta = case.make(classes=KNOWN_CLASSES)
    case.inputs = tuple(_rounded(x) for x in case.inputs)
    with torch.no_grad():
        expected, base = case.attached(), case.call()
    case.model.bfloat16()
    delta = build_delta(
        case.method,
        case.base,
        configure(case.method),
        case.delta.provenance.classes,
        torch.Generator().manual_seed(0),
    )
    delta.copy_(case.delta)
    case.inputs = tuple(x.bfloat16() if x.is_floating_point() else x for x in case.inputs)
    with torch.no_grad():
        own_error = _error(case.call(), base)
    with delta.attach(case.model):
        output, gradients = _gradients(case, delta)
    assert output.dtype == torch.bfloat16
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0 or not case.tiny.alive(name, gradient).any(), name
    # 8 bits of mantissa through a few layers of random weights: within a fifth of the spread, an
    # absent delta is beyond it all; or, where the base alone loses more (a time in 8 bits), within
    # what it loses
    assert _error(output, expected) < max(0.2, 2 * own_error)


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x) if x.is_floating_point() else x


def _error(output: Tensor, expected: Tensor) -> float:
    """The root of the mean square, as a share of the spread."""
    return ((output.double() - expected).square().mean().sqrt() / expected.std()).item()


def test_a_site_that_does_not_fire_raises(case):
    case.model.add_module("idle", nn.Linear(4, 4))
    edits = dict(case.delta.edits) | {"idle.bias": Shift(Site("idle"), 4)}
    if "root" in edits:  # a copy of the whole network has no such module
        edits.pop("root")
    delta = Delta(edits, case.delta.provenance)
    with delta.attach(case.model), pytest.raises(SmidgenError, match="idle"):
        case.call()


def test_removing_any_edit_changes_the_output(case):
    output = case.attached()
    for name, edit in case.some(case.delta.edits).items():
        tensors = {f"{name}.{key}": tensor for key, tensor in edit.tensors().items()}
        if name == "label_table":  # without it the new labels mean nothing
            continue
        edits = {key: edit for key, edit in case.delta.edits.items() if key != name}
        less = case.attached(Delta(edits, case.delta.provenance))
        if any(case.tiny.alive(key, tensor).any() for key, tensor in tensors.items()):
            assert (less - output).abs().max() > 1e-6, f"{name} does nothing"
        else:
            assert torch.allclose(less, output, rtol=0, atol=1e-9), f"{name} does something"


@pytest.mark.labelled
def test_removing_the_label_table_changes_the_output(case):
    delta = case.make(classes=KNOWN_CLASSES)
    case.use_labels(all_labels(KNOWN_CLASSES))
    edits = {key: edit for key, edit in delta.edits.items() if key != "label_table"}
    less = case.attached(Delta(edits, delta.provenance))
    assert ((less - case.attached(delta)).abs().amax(dim=(1, 2, 3)) > 1e-6).all()


# The exceptions, by name


@pytest.mark.parametrize(("method", "host"), REFUSED)
def test_a_refused_pair_says_why(method, host):
    with pytest.raises(SmidgenError, match=REFUSED[method, host]):
        tiny_delta(law_base(host), method)


def test_what_does_not_fold_says_why(case):
    why = reason(NOT_FOLDED, case.method, case.host)
    if why is not None:
        with pytest.raises(SmidgenError, match=f'".*" does not fold.*({why})'):
            fold(case.delta, case.model.state_dict(), case.base.host.folds)


@pytest.mark.parametrize("host", NOT_COMPILED)
def test_what_does_not_compile_is_the_base_itself(host):
    torch._dynamo.reset()
    tiny, model = TINY_HOSTS[host], law_base(host).denoiser
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), pytest.raises(TorchDynamoException, match=NOT_COMPILED[host]):
        tiny.call(compiled, *tiny.inputs(all_labels(KNOWN_CLASSES)))


@pytest.mark.only(*NOT_AT_THE_BASE)
def test_what_is_not_at_the_base_at_its_start_differs_a_little(case):
    case.use_labels(all_labels(KNOWN_CLASSES))
    with torch.no_grad():
        base = case.call()
    output = case.attached(case.make(classes=KNOWN_CLASSES, std=0.0))
    assert 1e-6 < (output - base).abs().max() < base.abs().max()
