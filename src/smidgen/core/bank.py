"""A bank: K deltas in one network at once, chosen for each image of a batch.

B images, K deltas. How the edits of the deltas act together is in mixed.py.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from smidgen.core.arithmetic import check_same_edits, shape_of
from smidgen.core.attachment import Attachment, HasDenoiser, attach
from smidgen.core.bodies import Narrowing
from smidgen.core.bypass import Bypass
from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Edit, Table, Weight, edit_from_spec, plant
from smidgen.core.mixed import MIXED, Choice, Mixed
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError


class Bank(nn.Module):
    """K deltas of the same edits, stacked. Widths of bypasses and numbers of classes may differ.

    Slots count from 0; slot -1 is the base itself. The stacks are copies of the deltas' tensors,
    and get gradients only if `trainable`; weight decay would change slot -1 as well.

    Raises: SmidgenError if there is no delta, one differs from the first in more than that or was
        made for another base, or one holds copies of weights, which a batch cannot mix.
    """

    def __init__(self, deltas: Sequence[Delta], trainable: bool = False) -> None:
        super().__init__()
        if not deltas:
            raise SmidgenError("a bank needs at least one delta")
        self.provenances = [delta.provenance for delta in deltas]
        self.choice = Choice()
        shapes = {name: shape_of(edit, rows=False) for name, edit in deltas[0].edits.items()}
        for slot, delta in enumerate(deltas):
            _check_alike(shapes, self.provenances[0], delta, slot)
        self.edits: dict[str, Mixed] = {}
        for name in deltas[0].edits:
            edits = [delta.edits[name] for delta in deltas]
            self.edits[name] = _stacked(edits, self.choice)
            plant(self, name, self.edits[name])
            if trainable:
                self.edits[name].train_slots()
        self._num_rows = [_num_rows(delta) for delta in deltas]

    def __len__(self) -> int:
        return len(self.provenances)

    def attach(self, model: nn.Module | HasDenoiser) -> Attachment:
        """Let the bank act in `model` (or its `.denoiser`) as a delta does (`Delta.attach`), each
        image with the delta that `choose` gave it.
        """
        return attach(self, model)

    @torch.no_grad()
    def choose(self, slots: Int[Tensor, " B"]) -> None:
        """The slot of each image in the calls that follow; -1 is the base. Where a call has several
        times as many images, as with guidance, the slots are repeated as a whole.

        Raises: SmidgenError for no slot at all or one that is not there, or -1 with added tokens,
            which an image of a batch cannot be without; in a call whose images are no multiple of
            the slots.
        """
        chosen = self._checked(slots)
        if not len(chosen):
            raise SmidgenError("no slots were given; give one for each image")
        has_tokens = any(isinstance(edit.template, Tokens) for edit in self.edits.values())
        if has_tokens and bool((chosen < 0).any()):
            raise SmidgenError(
                "slot -1 is the base, which has no added tokens, and all images of a batch have "
                "sequences of one length; run the base's images in a batch of their own"
            )
        device = next(self.parameters()).device
        self.choice.set(torch.where(chosen < 0, len(self), chosen).to(device))

    def null_labels(self, slots: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The null label of each slot: the last row of its table, for -1 of the base's.

        Raises: SmidgenError for a slot that is not there, or if the deltas have no label table.
        """
        tables = [edit.template for edit in self.edits.values() if isinstance(edit.template, Table)]
        if not tables:
            raise SmidgenError("the deltas of this bank have no label table; give prompts instead")
        ends = [num - 1 for num in self._num_rows] + [tables[0].num_old_rows - 1]
        return torch.tensor(ends, device=slots.device)[self._checked(slots)]

    def replace(self, slot: int, delta: Delta) -> None:
        """Put another delta into a slot, in place: compiled code goes on with it.

        Raises: SmidgenError if there is no such slot, or as `check`.
        """
        self._checked(torch.tensor([slot]), lowest=0)
        self.check(delta, slot)
        for name, mixed in self.edits.items():
            mixed.fill(slot, delta.edits[name])
        self.provenances[slot], self._num_rows[slot] = delta.provenance, _num_rows(delta)

    def check(self, delta: Delta, slot: int = 0) -> None:
        """Raises: SmidgenError if the delta does not fit into the stacks."""
        shapes = {name: shape_of(mixed.template, rows=False) for name, mixed in self.edits.items()}
        _check_alike(shapes, self.provenances[0], delta, slot)
        for name, mixed in self.edits.items():
            room, needed = _room(mixed.template), _room(delta.edits[name])
            if needed > room:
                raise SmidgenError(
                    f'"{name}" of the new delta is {needed} wide or long, and the bank has room '
                    f"for {room}; make a new bank"
                )

    def _checked(self, slots: Int[Tensor, " B"], lowest: int = -1) -> Int[Tensor, " B"]:
        wrong = [slot for slot in slots.tolist() if not lowest <= slot < len(self)]
        if wrong:
            raise SmidgenError(f"slot {wrong[0]} of a bank with slots {lowest} to {len(self) - 1}")
        return slots.long()


def _check_alike(shapes: dict[str, Any], first: Provenance, delta: Delta, slot: int) -> None:
    """Raises: SmidgenError if an edit cannot be stacked, or `delta` does not fit the bank."""
    for name, edit in delta.edits.items():
        if edit.component:
            raise SmidgenError(
                f'"{name}" acts in {edit.component}, which reads the prompts of all images of a '
                "batch; attach this delta alone"
            )
        if isinstance(edit, Weight):
            raise SmidgenError(
                f'"{name}" is a copy of weights, which all images of a batch run through together; '
                "attach this delta alone, or fold it"
            )
    check_same_edits(first, shapes, delta, f"the delta for slot {slot}", rows=False)


def _stacked(edits: Sequence[Edit], choice: Choice) -> Mixed:
    """The edits of one name as one."""
    largest = max(edits, key=_room)
    with torch.device("meta"):
        template = edit_from_spec(largest.spec())
    tensors = [next(edit.parameters()) for edit in edits]
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    mixed = MIXED[type(edits[0])](template, len(edits), choice, tensors[0].to(dtype))
    for slot, edit in enumerate(edits):
        mixed.fill(slot, edit)
    return mixed


def _room(edit: Any) -> int:
    """What the stack of an edit must be large enough for: the width, or the number of rows."""
    if isinstance(edit, Bypass):
        return edit.body.width if isinstance(edit.body, Narrowing) else 0
    return len(edit.rows) if isinstance(edit, Table) else 0


def _num_rows(delta: Delta) -> int:
    return next((len(edit.rows) for edit in delta.edits.values() if isinstance(edit, Table)), 0)
