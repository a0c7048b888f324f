"""What there is in a data set, in the same words for a dry run and for a training.

A copy is a file with the bytes of another: a duplicate.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from smidgen.data.captions import CaptionFindings
from smidgen.data.folder import ImageFolder, Look
from smidgen.data.listing import SIDE_FILE
from smidgen.errors import shown
from smidgen.sizes import ImageSize, nearest

SHOWN_FILES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Counts of a data set; None is what only the content of every file tells and was not read.

    `images`: files that are used (before their content is read: that may be), `classes` their
    number by class name. `bad`: files that were meant as images and cannot be used, `bad_share`
    their share of both. `side_files`: neither suffix nor first bytes of an image. `skipped`: all
    files that are not used, by the kind of their reason. `examples`: the first of them but side
    files as `name: reason`. `other_suffix`: images whose suffix is not that of their content.
    `copies`: images whose bytes an earlier one has. `enlarged`: images smaller than the training
    size. `buckets`: images by the size to which they are brought, None without buckets.
    `captions`: None of a base that reads none.
    """

    folder: str
    images: int
    classes: dict[str, int]
    bad: int
    bad_share: float
    side_files: int
    skipped: dict[str, int]
    examples: tuple[str, ...]
    other_suffix: int | None = None
    copies: int | None = None
    enlarged: int | None = None
    buckets: dict[str, int] | None = None
    captions: CaptionFindings | None = None

    @property
    def read(self) -> bool:
        """Whether the content was looked at: else files may still turn out bad."""
        return self.copies is not None

    def lines(self) -> list[str]:
        """The report."""
        if self.captions is not None and self.captions.source == "prompts":
            return [f"{self.captions.distinct:,} prompt(s) from {self.folder}, and no images"]
        found = [f"{self.images:,} image(s) in {len(self.classes):,} class(es) from {self.folder}"]
        if not self.read:
            found.append("by their names alone: what is inside the files was not looked at")
        if self.other_suffix:
            found.append(
                f"{self.other_suffix:,} with the suffix of another format, read as what they are"
            )
        if self.copies:
            found.append(
                f"{self.copies:,} are duplicates of others, byte for byte: all are trained on, and "
                "those of one picture stay on one side of the validation split"
            )
        if self.buckets is not None:
            counted = ", ".join(f"{count:,} at {size}" for size, count in self.buckets.items())
            found.append(f"{len(self.buckets)} bucket(s), by the shape of the images: {counted}")
        if self.enlarged:
            found.append(f"{self.enlarged:,} smaller than the training size, enlarged")
        if self.side_files:
            found.append(f"{self.side_files:,} side file(s) beside them, left alone")
        if self.captions is not None:
            found += self.captions.lines()
        others = {kind: number for kind, number in self.skipped.items() if kind != SIDE_FILE}
        if others:
            counted = ", ".join(f"{number:,} {kind}" for kind, number in others.items())
            found.append(f"{sum(others.values()):,} file(s) skipped: {counted}")
            found += [f"  {text}" for text in self.examples]
        return found

    def as_json(self) -> dict[str, Any]:
        """All of it as a JSON document."""
        return dataclasses.asdict(self)


def findings_of(
    folder: ImageFolder, looks: Sequence[Look] | None = None, sizes: Sequence[ImageSize] = ()
) -> Findings:
    """The counts of a folder as it is listed or, with `looks` at its files, as it is read.

    `sizes`: what images are brought to, the training size first, for what will be enlarged and what
    is in which bucket.
    """
    labels = Counter(folder.class_numbers)
    kinds = Counter(bad.kind for bad in folder.bad)
    named = Findings(
        folder=shown(str(folder.root)),
        images=len(folder.files),
        classes={name: labels[label] for label, name in enumerate(folder.classes)},
        bad=folder.num_bad,
        bad_share=folder.bad_share,
        side_files=kinds[SIDE_FILE],
        skipped=dict(kinds.most_common()),
        examples=tuple(
            folder.listed([bad for bad in folder.bad if bad.kind != SIDE_FILE], SHOWN_FILES)
        ),
    )
    if looks is None:
        return named
    pairs = zip(folder.files, looks, strict=True)
    facts = [look.facts for look in looks]
    brought = [nearest(one.width, one.height, sizes) for one in facts] if sizes else []
    counts = Counter(brought)
    return dataclasses.replace(
        named,
        other_suffix=sum(look.facts.has_other_suffix(file.path) for file, look in pairs),
        copies=num_copies(look.content for look in looks),
        enlarged=sum(one.enlarged(size) for one, size in zip(facts, brought, strict=True))
        if sizes
        else None,
        buckets={str(size): counts[size] for size in sorted(counts)} if len(sizes) > 1 else None,
    )


def num_copies(contents: Iterable[Hashable]) -> int:
    """How many of several contents (SHA-256 of files, say) an earlier one has already."""
    contents = list(contents)
    return len(contents) - len(set(contents))
