"""The fast path against the hooks: outputs and gradients of every method, and when it is taken."""

import pytest
import torch
from torch import Tensor

from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.core.edits import Scale, Shift
from smidgen.core.sites import Site, bind
from smidgen.errors import SmidgenError
from smidgen.fast.acting import acting, takes_fast_path
from smidgen.fast.functions import ROWS
from smidgen.fast.names import FrozenPrecision
from smidgen.models.base import Base
from smidgen.models.dit import DiT, DiTConfig
from tests.tiny.bases import base_of, law_base, tiny_base
from tests.tiny.deltas import provenance, tiny_delta
from tests.tiny.weights import moved

METHODS = {
    "bitfit": {},
    "difffit": {"gammas": ("block", "qkv", "proj", "final", "patch", "time"), "blocks": "all"},
    "lora": {"targets": ("qkv", "o", "ff1", "ff2")},
    "vpt": {},
    "adaptformer": {},
    "adapter": {},
    "full": {},
    "difffit+lora": {},
}
BATCH = 4


def wide_base() -> Base:
    """Large enough that the norm of each image is taken by itself."""
    network = DiT(DiTConfig(image_size=32, width=ROWS // 256, depth=2, num_heads=4, num_classes=3))
    return base_of(moved(network.double(), 0.02, seed=0), ("ant", "bee", "cat"))


def inputs(base: Base, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    size = base.denoiser.config.image_size
    shape = (BATCH, 4, size, size)
    x = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    return x, torch.tensor([3.0, 500, 20, 999], dtype=dtype), torch.tensor([0, 1, 2, 3])


def weights_of(output: Tensor) -> Tensor:
    """Random numbers of its shape, so that each number of it counts another way."""
    draw = torch.Generator().manual_seed(2)
    return torch.randn(output.shape, generator=draw, dtype=torch.float64).to(output)


def outcome(
    base: Base,
    delta: Delta,
    *,
    fast: bool,
    dtype: torch.dtype = torch.float64,
    frozen_precision: FrozenPrecision = "exact",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of a batch, and the gradient of every tensor of the delta."""
    x, t, y = inputs(base, dtype)
    delta.zero_grad()
    base.denoiser.requires_grad_(False)
    with acting(delta, base.denoiser, fast=fast, frozen_precision=frozen_precision):
        output = base.denoiser(x, t, y)
        (output * weights_of(output)).sum().backward()
    gradients = {n: p.grad for n, p in delta.named_parameters() if p.grad is not None}
    return output.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two gradients of one tensor, of the largest number in it."""
    assert one.keys() == other.keys()
    return max(
        float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-30))
        for name in one
    )


def agree(base: Base, delta: Delta, within: float = 1e-12) -> None:
    """Both ways give the same output and the same gradients."""
    assert takes_fast_path(delta, base.denoiser)
    by_hooks, folded = outcome(base, delta, fast=False), outcome(base, delta, fast=True)
    assert torch.allclose(by_hooks[0], folded[0], rtol=within, atol=within)
    assert furthest(by_hooks[1], folded[1]) < within


@pytest.mark.parametrize("method", METHODS)
def test_output_and_gradients_are_those_of_the_hooks(method):
    base = law_base("dit")
    agree(base, tiny_delta(base, method, **METHODS[method]))


@pytest.mark.parametrize("method", ["difffit", "lora"])
def test_the_norm_of_one_image_at_a_time_is_the_same(method):
    base = wide_base()
    agree(base, tiny_delta(base, method, **METHODS[method]))


@pytest.mark.parametrize("method", ["difffit", "vpt"])
def test_recomputed_blocks_give_the_same(method):
    base = law_base("dit")
    base.denoiser.gradient_checkpointing = True
    agree(base, tiny_delta(base, method, **METHODS[method]))


def test_gradients_in_float32_are_within_rounding():
    base = law_base("dit")
    base.denoiser.float()
    delta = tiny_delta(base, "difffit", **METHODS["difffit"]).float()
    exact, folded = (
        outcome(base, delta, fast=fast, dtype=torch.float32)[1] for fast in (False, True)
    )
    assert furthest(exact, folded) < 1e-5


@pytest.mark.parametrize("gain", [0.0, 1e-6])
def test_a_gain_near_zero_keeps_its_gradient(gain):
    """Where y / gain would be rounding and nothing else."""
    base = law_base("dit")
    delta = tiny_delta(base, "difffit", gammas=("qkv",))
    with torch.no_grad():
        delta.edits["blocks.0.attn.qkv.gamma"].gain[3] = gain
    agree(base, delta)


def test_vectors_and_functions_of_one_place_keep_their_order():
    """A gain before a shift, and both sites of one tensor, whatever the order of the edits."""
    base = law_base("dit")
    sites = [Site("blocks.0.attn"), Site("blocks.0.attn.proj"), Site("blocks.1.norm2")]
    sites += [Site("blocks.1.mlp.act"), Site("blocks.0", "in"), Site("final_layer.norm_final")]
    edits = {}
    for number, site in enumerate(sites):
        size = base.denoiser.config.width * (4 if site.module.endswith("act") else 1)
        edits[f"{number}.first"] = Shift(site, size)
        edits[f"{number}.gain"] = Scale(site, size)
        edits[f"{number}.last"] = Shift(site, size)
    agree(base, moved(Delta(edits, provenance()).double(), 0.3, seed=4))


@pytest.mark.parametrize("method", ["bitfit", "difffit", "lora", "adaptformer", "vpt"])
def test_a_bank_gives_each_image_its_own_delta(method):
    """Alone, in a batch, and with the batch repeated as guidance does it."""
    base = law_base("dit")
    options = METHODS[method] | ({"final_layer": False} if method == "vpt" else {})
    deltas = [tiny_delta(base, method, std=std, **options) for std in (0.1, 0.2)]
    bank = Bank(deltas)
    x, t, y = inputs(base, torch.float64)
    for slots, rows in (([1], 1), ([0, 1, 1, 0], 4), ([0, 1], 4)):
        bank.choose(torch.tensor(slots))
        found = []
        for fast in (False, True):
            with torch.no_grad(), acting(bank, base.denoiser, fast=fast):
                assert (base.denoiser.fast is not None) == fast
                found.append(base.denoiser(x[:rows], t[:rows], y[:rows]))
        assert torch.allclose(*found, atol=1e-12)


def test_nothing_is_left_behind():
    base = tiny_base()
    delta = tiny_delta(base, "difffit").float()
    with acting(delta, base.denoiser):
        assert base.denoiser.fast is not None
        assert not any(module._forward_hooks for module in base.denoiser.blocks.modules())
    assert base.denoiser.fast is None
    assert not any(module._forward_hooks for module in base.denoiser.modules())


def test_hooks_are_taken_where_something_else_watches_the_blocks():
    base = tiny_base()
    delta = tiny_delta(base, "bitfit").float()
    base.denoiser.blocks[0].attn.register_forward_hook(lambda *_: None)
    assert not takes_fast_path(delta, base.denoiser)


def test_hooks_that_come_later_are_not_passed_by():
    base = tiny_base()
    delta = tiny_delta(base, "bitfit").float()
    x, t, y = torch.zeros(1, *base.latent_shape), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with acting(delta, base.denoiser):
        handle = bind(base.denoiser, Site("blocks.0.attn"), lambda value: value)
        with pytest.raises(SmidgenError, match="fast path"):
            base.denoiser(x, t, y)
        handle.remove()
        base.denoiser(x, t, y)


def test_edits_of_other_places_go_by_hooks():
    base = law_base("dit")
    size = base.denoiser.config.width
    delta = Delta({"silu": Shift(Site("blocks.0.adaLN_modulation.0"), size)}, provenance())
    assert not takes_fast_path(delta, base.denoiser)


@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("method", "frozen_precision"),
    [("difffit", "exact"), ("lora", "exact"), ("vpt", "exact"), ("difffit", "8bit")],
)
def test_it_compiles_into_one_graph(method, frozen_precision):
    base = law_base("dit")
    delta = tiny_delta(base, method, **METHODS[method])
    reduced = frozen_precision != "exact"  # where a gain is folded into a row or not matters
    expected = outcome(base, delta, fast=True, frozen_precision=frozen_precision)
    x, t, y = inputs(base, torch.float64)
    base.denoiser.requires_grad_(False)
    delta.zero_grad()
    with acting(delta, base.denoiser, frozen_precision=frozen_precision):
        compiled = torch.compile(base.denoiser, fullgraph=True, backend="aot_eager")
        output = compiled(x, t, y)
        (output * weights_of(output)).sum().backward()
    torch.compiler.reset()
    gradients = {n: p.grad for n, p in delta.named_parameters() if p.grad is not None}
    assert torch.allclose(output, expected[0], atol=1e-2 if reduced else 1e-12)
    assert furthest(expected[1], gradients) < (5e-2 if reduced else 1e-11)
