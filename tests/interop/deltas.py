"""Random deltas that fold, made of a host's tables."""

import torch
from torch import nn

from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Scale, Shift
from smidgen.core.fold import IntoLinear, IntoModulation
from smidgen.hosts.host import find_host


def provenance(host, method="difffit", fingerprint=""):
    return Provenance(
        method=method,
        config={},
        host=host.family,
        base="tiny",
        fingerprint=fingerprint,
        classes=(),
        training={},
    )


def foldable(model: nn.Module, fingerprint="", seed=5) -> Delta:
    """A gain and an offset at every site of the host that takes one up; small, so that the images
    stay alive, and nothing at its start.
    """
    host = find_host(model)
    edits = {}
    for site, target in host.folds.items():
        name = f"{site.module}.{site.end}"
        if site not in host.sizes or site.end != "out":
            continue
        if isinstance(target, IntoLinear | IntoModulation):
            edits[f"{name}.gain"] = Scale(site, host.sizes[site])
        if isinstance(target, IntoModulation) or (
            isinstance(target, IntoLinear) and target.bias is not None
        ):
            edits[f"{name}.offset"] = Shift(site, host.sizes[site])
    delta = Delta(edits, provenance(host, fingerprint=fingerprint))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return delta
