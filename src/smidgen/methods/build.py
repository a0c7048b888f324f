"""From a method to a delta: what every delta has besides its method's own edits is added here, the
label table, the provenance and the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib import import_module
from itertools import takewhile
from typing import Any

import torch

from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Edit, Shift, Weight
from smidgen.core.storage import runs_on
from smidgen.errors import SmidgenError
from smidgen.methods import METHODS, parts_of
from smidgen.methods.combine import PLUS, field_of, merged
from smidgen.methods.label_table import label_edits
from smidgen.methods.method import Encoder, Tunable


def build_delta(
    name: str,
    base: Tunable,
    config: Any,
    classes: Sequence[str],
    generator: torch.Generator,
    *,
    training: Mapping[str, Any] | None = None,
    encoders: Sequence[Encoder] = (),
    token: str | None = None,
    train_labels: bool = True,
) -> Delta:
    """A fresh delta of the method, or of the several, called `name`, on the base's device.

    `config` is what `configure` gives for that name, `classes` what the label table has rows for
    (empty where the base has no labels), `training` that part of the provenance. `encoders` are the
    base's text encoders, if something of them is trained (`methods.acts_in_encoders`), `token` the
    new word of textual inversion. Without `train_labels` the base's label table stays as it is, and
    `classes` are some of its own.

    Raises: UsageError for an unknown name or options that do not fit the base; SmidgenError if a
        method does not work there or finds nothing to train, or as `label_edits` and `merged`.
    """
    parts = list(parts_of(name))
    options = {
        part: getattr(config, field_of(part)) if len(parts) > 1 else config for part in parts
    }
    # each part with a table of its own, of which `merged` keeps the first: what a part draws from
    # the generator then does not depend on its being one of several
    edits = merged(
        {
            part: _edits(part, base, options[part], classes, generator, train_labels)
            | _edits_in(encoders, part, options[part], generator, token)
            for part in parts
        }
    )
    method = PLUS.join(parts)
    if not edits:
        raise SmidgenError(
            f"{method} finds nothing to train in a {base.host.family} base; choose another method"
        )
    provenance = Provenance(
        method=method,
        config=_plain(asdict(config)),
        host=base.host.family,
        base=base.name,
        fingerprint=base.fingerprint,
        classes=tuple(classes),
        training=dict(training or {}),
        components={
            one.component: one.fingerprint
            for one in encoders
            if any(edit.component == one.component for edit in edits.values())
        },
    )
    return Delta(edits, provenance).to(runs_on(base.denoiser))


def _edits(
    method: str,
    base: Tunable,
    config: Any,
    classes: Sequence[str],
    generator: torch.Generator,
    train_labels: bool,
) -> dict[str, Edit]:
    """The edits of one method and the label table, if that is trained, which stands behind the
    leading copies and shifts, what trains the base's own parameters, and before all that is new.
    """
    reason = base.host.refusals.get(method)
    if reason is not None:
        raise SmidgenError(f"{method} does not work on a {base.host.family} base: {reason}")
    build = _module(method).build
    # beside a base on another device the edits are made on the CPU, where the generator draws
    on_meta = runs_on(base.denoiser).type == "meta"
    with torch.device("meta") if on_meta else nullcontext():
        edits: dict[str, Edit] = dict(build(base, config, generator))
    table = label_edits(base, classes, generator, trained=train_labels)
    own = dict(takewhile(lambda item: isinstance(item[1], Weight | Shift), edits.items()))
    return own | table | edits


def _edits_in(
    encoders: Sequence[Encoder],
    method: str,
    config: Any,
    generator: torch.Generator,
    token: str | None,
) -> dict[str, Edit]:
    """The edits of one method in text encoders, if it has such."""
    if not encoders and METHODS[method].encoders == "always":
        raise SmidgenError(f"{method} trains in text encoders, and there are none here")
    if not encoders or METHODS[method].encoders == "never":
        return {}
    on_meta = next(encoders[0].network.parameters()).is_meta
    with torch.device("meta") if on_meta else nullcontext():
        return dict(_module(method).build_in_encoders(encoders, config, generator, token))


def _module(method: str) -> Any:
    return import_module(f"smidgen.methods.{field_of(method)}")


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back, so that a loaded delta's provenance equals the saved one's."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
