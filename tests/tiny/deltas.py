"""Random deltas."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Scale, Shift
from smidgen.core.fold import IntoLinear, IntoModulation
from smidgen.hosts.host import Host, Linear, find_host
from smidgen.methods import METHODS, configure
from smidgen.methods.build import build_delta
from smidgen.methods.lora import bypass_beside, name_of
from smidgen.models.base import Base
from tests.tiny.bases import NEW_CLASSES
from tests.tiny.weights import moved

# those that have edits in a denoiser, and need no prompts
DENOISER_METHODS = tuple(name for name, one in METHODS.items() if one.encoders != "always")


def tiny_delta(
    base: Base, method: str, classes: Sequence[str] = NEW_CLASSES, *, std: float = 0.2, **config
) -> Delta:
    """The float64 delta of `method` with every tensor moved off its start by N(0, std).

    A base without labels is given no classes.
    """
    generator = torch.Generator().manual_seed(2)
    classes = classes if base.host.has_labels else ()
    delta = build_delta(method, base, configure(method, config), classes, generator).double()
    return moved(delta, std, seed=3)


def trained_tensors(delta: Delta) -> dict[str, nn.Parameter]:
    """The trained tensors by the names that they have in a delta file."""
    return {
        f"{name}.{key}": parameter
        for name, edit in delta.edits.items()
        for key, parameter in edit.tensors().items()
    }


def provenance(**changes: Any) -> Provenance:
    """Facts of a training that never was."""
    facts = {
        "method": "none",
        "config": {"rank": 3},
        "host": "network",
        "base": "tiny",
        "fingerprint": "",
        "classes": tuple("abcdefgh"),
        "training": {"steps": 7, "lr": 1e-3},
    }
    return Provenance(**(facts | changes))


def foldable(model: nn.Module, fingerprint: str = "", seed: int = 5) -> Delta:
    """A gain and an offset at every site of the host that takes one up; small, so that the images
    stay alive, and nothing at its start.
    """
    host, edits = find_host(model), {}
    for site, target in host.folds.items():
        if site not in host.sizes or site.end != "out":
            continue
        name = f"{site.module}.{site.end}"
        takes_gain = isinstance(target, IntoLinear | IntoModulation)
        if takes_gain:
            edits[f"{name}.gain"] = Scale(site, host.sizes[site])
        if takes_gain and target.bias is not None:
            edits[f"{name}.offset"] = Shift(site, host.sizes[site])
    return moved(Delta(edits, _of(host, "difffit", fingerprint)), 0.05, seed)


def lora(
    model: nn.Module,
    *,
    share: float = 1.0,
    strength: float = 0.3,
    chosen: Callable[[Linear], bool] | None = None,
    fingerprint: str = "sketch1:none",
) -> Delta:
    """Random LoRA beside `share` of the host's linears and convolutions, of ranks 1 to 3 and of two
    scales, one a power of two.
    """
    host = find_host(model)
    generator = torch.Generator().manual_seed(2)
    edits, modules = {}, dict(model.named_modules())
    for number, linear in enumerate(host.linears):
        grouped = getattr(modules[linear.module], "groups", 1) != 1
        whole = linear.rows is None if chosen is None else chosen(linear)
        if not whole or grouped or torch.rand((), generator=generator) > share:
            continue
        scale = (0.5, 1.3)[number % 2]
        edits[name_of(linear)] = bypass_beside(model, linear, 1 + number % 3, scale)
    delta = Delta(edits, _of(host, "lora", fingerprint))
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))
    return delta


def changed(state: dict[str, Tensor], delta: Delta) -> dict[str, Tensor]:
    """W + scale * up @ down in float64, written out, for every edit of a LoRA."""
    state = {key: tensor.clone().double() for key, tensor in state.items()}
    for edit in delta.edits.values():
        weight = state[f"{edit.sites[0].module}.weight"]
        down, up = edit.body.down.weight.double(), edit.body.up.weight.double()
        product = (up.flatten(1) @ down.flatten(1)).view(-1, *weight.shape[1:])
        start, stop = edit.rows or (0, len(weight))
        weight[start:stop] += edit.scale * product
    return state


def _of(host: Host, method: str, fingerprint: str) -> Provenance:
    facts = {"config": {}, "classes": (), "training": {}, "fingerprint": fingerprint}
    return provenance(method=method, host=host.family, **facts)
