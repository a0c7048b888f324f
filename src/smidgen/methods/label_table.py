"""The label table of a fine-tune: a row for each new class and the null row.

K new classes, D channels of an embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from smidgen.core.edits import Edit, Table
from smidgen.errors import SmidgenError
from smidgen.methods.method import Tunable
from smidgen.models.labels import rows_of

ROW_STD = 0.02  # the released models' initialisation of the label table


def label_edits(
    base: Tunable, classes: Sequence[str], generator: torch.Generator, *, trained: bool = True
) -> dict[str, Edit]:
    """The label table of `classes` by its name in a delta; nothing for a base without labels, or
    whose own table is not `trained` and has a row for each of them.

    Raises: UsageError for other classes than that; SmidgenError if a base without labels is given
        classes, and as `label_table`.
    """
    if base.host.has_labels and not trained:
        rows_of(classes, base.class_names, base.name)
        return {}
    if base.host.has_labels:
        return {"label_table": label_table(base, classes, generator)}
    if classes:
        raise SmidgenError(
            f"a {base.host.family} base has no label table for {len(classes)} classes; "
            "its conditions are prompts: give it no classes"
        )
    return {}


def label_table(base: Tunable, classes: Sequence[str], generator: torch.Generator) -> Table:
    """A table of K + 1 rows that stands in for the base's; the last row is the null label's.

    The null row and the rows of classes that the base knows by the same name start as the base's
    own, the others as the mean of the base's class rows + N(0, 0.02), for which the DiffFit paper
    has no rule. The table remembers which of the base's rows each of the former is. A base without
    class names knows none. `generator` draws on the CPU; a table on the meta device draws nothing.

    Raises: SmidgenError if `classes` is empty or names one twice, or if the base's class names do
        not fit its table.
    """
    _check(classes)
    site = base.host.tap("label.out")
    weight = base.denoiser.get_submodule(site.module).get_parameter("weight")
    num_known = weight.shape[0] - 1
    names = base.class_names
    if names and len(names) != num_known:
        raise SmidgenError(
            f'base "{base.name}" has {num_known} classes but {len(names)} class names; '
            "give it one name for each row of its label table"
        )
    known = {name: row for row, name in enumerate(names)}
    origin = [*(known.get(name) for name in classes), num_known]
    # half types are trained in float32
    old = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if old.is_meta:
        rows = old.new_empty(len(classes) + 1, old.shape[1])
    else:
        noise = torch.randn(len(classes), old.shape[1], generator=generator, dtype=torch.float32)
        rows = old[:num_known].mean(0) + ROW_STD * noise.to(old)
        rows = torch.cat([rows, old[num_known:]])
        for row, old_row in enumerate(origin):
            if old_row is not None:
                rows[row] = old[old_row]
    return Table(base.host.tap("label.in"), site, weight.shape[0], rows, origin=origin)


def _check(classes: Sequence[str]) -> None:
    if not classes:
        raise SmidgenError("no classes to train; give at least one class name")
    repeated = sorted(name for name, times in Counter(classes).items() if times > 1)
    if repeated:
        raise SmidgenError(f"class names given twice: {', '.join(repeated)}; each must be unique")
