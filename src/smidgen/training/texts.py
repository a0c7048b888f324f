"""Texts that are encoded in the step that trains on them, because the text encoders are trained or
the texts are new at every draw.

B images of a batch. A label is the number of a text, the last that of none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.hosts.family import Condition
from smidgen.models.conditioner import rows_of
from smidgen.models.labels import Labels
from smidgen.models.reader import Reader

COMMA = ","
MOST_ORDERS = 2**62  # a shuffling is told by a number below this


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Text i is `prompts[i]`; `keep` None: as it stands, else with its tags behind so many shuffled
    anew for each image that is drawn. Conditions are for a network on `device`, in its precision.
    """

    reader: Reader
    prompts: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    keep: int | None = None

    def orders(self, count: int, generator: torch.Generator) -> Tensor | None:
        """How the tags of so many images are shuffled, as numbers (count,); None: not at all."""
        if self.keep is None:
            return None
        return torch.randint(MOST_ORDERS, (count,), generator=generator)

    def conditions(self, labels: Tensor, orders: Tensor | None = None) -> Condition:
        """What the encoders as they are now make of the texts of these labels (B,).

        Raises: SmidgenError as `Reader.read`.
        """
        texts = [self.prompts[label] for label in labels.tolist()]
        if orders is not None and self.keep is not None:
            texts = [
                shuffled(text, self.keep, order)
                for text, order in zip(texts, orders.tolist(), strict=True)
            ]
        return self.reader.batch(texts, self.device, self.dtype)

    @torch.no_grad()
    def fixed(self, labels: Labels) -> Labels:
        """The same labels with the conditions that they have now, each made by itself and kept."""
        every = range(labels.null + 1)
        rows = rows_of([labels.conditions(torch.tensor([label])) for label in every])
        return Labels(
            names=labels.names,
            conditions=lambda shown: {name: value[shown] for name, value in rows.items()},
        )


def shuffled(text: str, keep: int, order: int) -> str:
    """A text of tags with commas between them, those behind the first `keep` in the order that this
    number means; a text of one tag stays as it is.
    """
    tags = [tag for part in text.split(COMMA) if (tag := part.strip())]
    if len(tags) < 2:
        return text
    head, rest = tags[:keep], tags[keep:]
    places = torch.randperm(len(rest), generator=torch.Generator().manual_seed(order))
    return f"{COMMA} ".join([*head, *(rest[place] for place in places.tolist())])
