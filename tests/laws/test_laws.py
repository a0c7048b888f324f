"""The laws of a delta, every method on every host, with every tensor of base and delta random."""

from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from smidgen.core.delta import Delta
from smidgen.core.edits import Shift
from smidgen.core.fold import fold
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from smidgen.methods import METHODS
from tests.laws.tiny import (
    KNOWN_CLASSES,
    NEW_CLASSES,
    TINY_HOSTS,
    all_labels,
    tiny_base,
    tiny_delta,
    trained_tensors,
)

ROUNDING = 1e-12  # float64, a few dozen operations on numbers of size one


@pytest.fixture(params=TINY_HOSTS)
def host(request):
    return request.param


@pytest.fixture(params=METHODS)
def case(request, host):
    """A base, a delta of new classes, and inputs with every label."""
    base = tiny_base(host)
    return SimpleNamespace(
        tiny=TINY_HOSTS[host],
        base=base,
        model=base.denoiser,
        method=request.param,
        delta=tiny_delta(base, request.param),
        inputs=TINY_HOSTS[host].inputs(all_labels(NEW_CLASSES)),
    )


def _attached(case, delta=None):
    with torch.no_grad(), (delta or case.delta).attach(case.model):
        return case.model(*case.inputs)


def _gradients(case, delta):
    """Gradients of a loss that weighs every output differently."""
    output = case.model(*case.inputs)
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view_as(output)
    tensors = trained_tensors(delta)
    gradients = torch.autograd.grad((output * weights).square().sum(), list(tensors.values()))
    return output.detach(), dict(zip(tensors, gradients, strict=True))


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


def test_the_start_is_the_base(case):
    labels = all_labels(KNOWN_CLASSES)
    case.inputs = case.tiny.inputs(labels)
    with torch.no_grad():
        expected = case.model(*case.inputs)
    start = tiny_delta(case.base, case.method, KNOWN_CLASSES, std=0.0)
    assert torch.equal(_attached(case, start), expected)


def test_the_start_with_new_classes_is_the_base_for_known_classes_and_null(case):
    start = tiny_delta(case.base, case.method, NEW_CLASSES, std=0.0)
    known, null = NEW_CLASSES.index("bee"), len(NEW_CLASSES)
    old_known, old_null = KNOWN_CLASSES.index("bee"), len(KNOWN_CLASSES)
    with torch.no_grad():
        expected = case.model(*case.tiny.inputs(torch.tensor([old_known, old_null])))
    case.inputs = case.tiny.inputs(torch.tensor([known, null]))
    assert torch.equal(_attached(case, start), expected)


def test_training_leaves_the_base_bit_for_bit(case):
    values, facts = _snapshot(case.model)
    start = {name: tensor.detach().clone() for name, tensor in trained_tensors(case.delta).items()}
    with case.delta.attach(case.model):
        optimizer = torch.optim.AdamW(case.delta.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            case.model(*case.inputs).square().sum().backward()
            optimizer.step()
    values_after, facts_after = _snapshot(case.model)
    assert facts_after == facts
    assert list(values_after) == list(values)
    for name, tensor in values_after.items():
        assert torch.equal(tensor.view(torch.uint8), values[name].view(torch.uint8)), name
    for name, tensor in trained_tensors(case.delta).items():
        assert not torch.equal(tensor, start[name]), f"{name} did not train"


def test_every_trained_element_gets_a_gradient_and_the_base_none(case):
    with case.delta.attach(case.model):
        _, gradients = _gradients(case, case.delta)
    dead = {
        f"{name}{end}": bounds
        for name, bounds in case.tiny.without_gradient.items()
        for end in ("", ".offset")  # as a trained copy, as a shift
    }
    for name, gradient in gradients.items():
        flat, scale = gradient.flatten(), gradient.abs().max()
        alive = torch.ones_like(flat, dtype=torch.bool)
        if name in dead:
            alive[slice(*dead[name])] = False
            assert flat[~alive].abs().max() < ROUNDING * scale, name
        assert flat[alive].abs().min() > ROUNDING * scale, f"{name} has elements without gradient"
    assert all(p.grad is None and not p.requires_grad for p in case.model.parameters())


def test_a_loaded_delta_equals_the_saved_one(case, tmp_path):
    case.delta.save(tmp_path / "delta.safetensors")
    loaded = Delta.load(tmp_path / "delta.safetensors")
    assert loaded.provenance == case.delta.provenance
    assert loaded.num_parameters() == case.delta.num_parameters()
    assert torch.equal(_attached(case, loaded), _attached(case))


def test_detaching_restores_the_output(case):
    case.inputs = case.tiny.inputs(all_labels(KNOWN_CLASSES))
    with torch.no_grad():
        before = case.model(*case.inputs)
        assert not torch.equal(_attached(case), before)
        assert torch.equal(case.model(*case.inputs), before)


def test_the_folded_base_equals_the_attached_delta(case):
    folded = case.tiny.make(len(NEW_CLASSES)).double()
    folded.load_state_dict(fold(case.delta, case.model.state_dict(), case.base.host.folds))
    with torch.no_grad():
        output = folded(*case.inputs)
    torch.testing.assert_close(output, _attached(case), atol=ROUNDING, rtol=ROUNDING)


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


@pytest.fixture
def shapes_unchecked():
    """The shape checks of the tests are no part of the package, and dynamo cannot trace them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("first", ["eager", "compiled"])
def test_compiling_changes_nothing(case, first):
    torch._dynamo.reset()
    eager, counter = case.model, CompileCounter()  # a backend that runs what it is given eagerly
    results = {}
    with case.delta.attach(eager):
        compiled = torch.compile(eager, fullgraph=True, backend=counter)
        models = {"eager": eager, "compiled": compiled}
        for name in sorted(models, key=lambda name: name != first):
            case.model = models[name]
            results[name] = _gradients(case, case.delta)
            _gradients(case, case.delta)
    assert counter.frame_count == 1  # one graph, never compiled again
    (output, gradients), (again, gradients_again) = results["eager"], results["compiled"]
    torch.testing.assert_close(again, output, atol=ROUNDING, rtol=ROUNDING)
    for name, gradient in gradients.items():
        atol = ROUNDING * gradient.abs().max().item()
        torch.testing.assert_close(
            gradients_again[name], gradient, atol=atol, rtol=1e-9, msg=f"gradient of {name}"
        )


def test_a_bf16_base_works(case):
    expected = _attached(case)
    case.model.bfloat16()
    delta = METHODS[case.method].build(
        case.base, METHODS[case.method].config(), NEW_CLASSES, torch.Generator().manual_seed(0)
    )
    delta.copy_(case.delta)
    case.inputs = tuple(x.bfloat16() if x.is_floating_point() else x for x in case.inputs)
    with delta.attach(case.model):
        output, gradients = _gradients(case, delta)
    assert output.dtype == torch.bfloat16
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    # 8 bits of mantissa through a few layers: within a tenth of the spread
    error = (output.double() - expected).square().mean().sqrt()
    assert error < 0.1 * expected.std()


def test_a_site_that_does_not_fire_raises(case):
    case.model.add_module("idle", nn.Linear(4, 4))
    edits = dict(case.delta.edits) | {"idle.bias": Shift(Site("idle"), 4)}
    delta = Delta(edits, case.delta.provenance)
    with delta.attach(case.model), pytest.raises(SmidgenError, match="idle"):
        case.model(*case.inputs)


def test_removing_any_edit_changes_the_output(case):
    output = _attached(case)
    for name in case.delta.edits:
        if name == "label_table":  # without it the new labels mean nothing
            continue
        edits = {key: edit for key, edit in case.delta.edits.items() if key != name}
        less = _attached(case, Delta(edits, case.delta.provenance))
        assert (less - output).abs().max() > 1e-6, f"{name} does nothing"


def test_removing_the_label_table_changes_the_output(case):
    case.delta = tiny_delta(case.base, case.method, KNOWN_CLASSES)
    case.inputs = case.tiny.inputs(all_labels(KNOWN_CLASSES))
    edits = {key: edit for key, edit in case.delta.edits.items() if key != "label_table"}
    less = _attached(case, Delta(edits, case.delta.provenance))
    assert ((less - _attached(case)).abs().amax(dim=(1, 2, 3)) > 1e-6).all()
