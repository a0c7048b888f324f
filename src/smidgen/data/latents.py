"""The latents of a data set: posterior means and standard deviations, and fresh draws from them.

N images, V views (the picture, and its mirror image with flip), C channels, h x w latent pixels.
"""

import dataclasses
from collections.abc import Sequence

import torch

from smidgen.data.findings import Findings, num_copies
from smidgen.data.folder import ImageFolder
from smidgen.sizes import ImageSize


class MappedRows:
    """A tensor (N, V, C, h, w) whose rows lie in several memory-mapped tensors (n, V, C, h, w)."""

    def __init__(self, parts: Sequence[torch.Tensor], part_of: torch.Tensor, row_of: torch.Tensor):
        """Image i is row `row_of[i]` of `parts[part_of[i]]`."""
        self._parts = list(parts)
        self._part_of = part_of
        self._row_of = row_of
        self.shape = torch.Size((len(part_of), *parts[0].shape[1:]))

    def __len__(self) -> int:
        return len(self._part_of)

    @property
    def num_bytes(self) -> int:
        """Of all rows, in memory."""
        return self.shape.numel() * self._parts[0].element_size()

    def __getitem__(self, key: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(B, C, h, w) of images and views (B,), as `tensor[images, views]` gives it."""
        images, views = key
        parts, rows = self._part_of[images], self._row_of[images]
        out = torch.empty((len(images), *self.shape[2:]), dtype=self._parts[0].dtype)
        for part in parts.unique().tolist():
            here = parts == part
            out[here] = self._parts[part][rows[here], views[here]]
        return out

    def to_tensor(self) -> torch.Tensor:
        """All of it in memory."""
        out = torch.empty(self.shape, dtype=self._parts[0].dtype)
        for part, tensor in enumerate(self._parts):
            here = self._part_of == part
            out[here] = tensor[self._row_of[here]]
        return out

    @classmethod
    def joined(cls, one: "Rows | BucketRows", other: "Rows | BucketRows") -> "Rows":
        """The rows of one, then those of another of that shape; a tensor if both are in memory."""
        assert not isinstance(one, BucketRows), "joined rows are of one shape"
        assert not isinstance(other, BucketRows), "joined rows are of one shape"
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return torch.cat([one, other])
        first, second = (
            rows
            if isinstance(rows, MappedRows)
            else cls([rows], torch.zeros(len(rows), dtype=torch.long), torch.arange(len(rows)))
            for rows in (one, other)
        )
        return cls(
            first._parts + second._parts,
            torch.cat([first._part_of, second._part_of + len(first._parts)]),
            torch.cat([first._row_of, second._row_of]),
        )


Rows = torch.Tensor | MappedRows


class BucketRows:
    """Rows (V, C, h, w) of several shapes, those of one shape in a bucket of their own; what is
    read at once is of one bucket.
    """

    def __init__(self, buckets: Sequence[Rows], bucket_of: torch.Tensor) -> None:
        """Image i is the next row of bucket `bucket_of[i]`."""
        self.buckets = list(buckets)
        self.bucket_of = bucket_of
        self._row_of = torch.empty_like(bucket_of)
        for number, rows in enumerate(self.buckets):
            self._row_of[bucket_of == number] = torch.arange(len(rows))

    @classmethod
    def of(cls, buckets: Sequence[Rows], bucket_of: torch.Tensor) -> "Rows | BucketRows":
        """These rows; those of the one bucket where there are no others."""
        return buckets[0] if len(buckets) == 1 else cls(buckets, bucket_of)

    def __len__(self) -> int:
        return len(self.bucket_of)

    def __getitem__(self, key: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(B, C, h, w) of images of one bucket and views (B,)."""
        images, views = key
        return self.bucket(images)[self._row_of[images], views]

    def bucket(self, images: torch.Tensor) -> Rows:
        """The bucket of these images."""
        numbers = self.bucket_of[images].unique().tolist()
        assert len(numbers) == 1, "what is drawn at once is of one bucket"
        return self.buckets[numbers[0]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSet:
    """Posteriors, in float32 or rounded to float16, with the numbers of the images' classes,
    `class_numbers` (N,), and their names; large sets stay on the disk.

    `folder` is what was scanned, with what turned out bad while encoding, and `findings` the report
    about it. `contents` are the SHA-256 of the images' files: equal ones are copies of a picture;
    empty: not known. `num_encoded` pictures were encoded now and not found in the cache.
    `captions` are those of each image, None where classes are trained on. `class_images`, of a
    personalisation, are the last ones: they show not the subject but its class. `image_sizes` are
    those to which the images were brought, empty: not known; of several, what is drawn at once is
    of one bucket (`in_buckets`). `placements` (N, 6) are those of `images.placement`, None: not
    known.
    """

    mean: Rows | BucketRows
    std: Rows | BucketRows
    class_numbers: torch.Tensor
    names: tuple[str, ...]
    folder: ImageFolder | None = None
    contents: tuple[str, ...] = ()
    findings: Findings | None = None
    num_encoded: int = 0
    captions: tuple[tuple[str, ...], ...] | None = None
    class_images: "LatentSet | None" = None
    image_sizes: tuple[ImageSize, ...] = ()
    placements: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.class_numbers)

    @property
    def num_own(self) -> int:
        """Images without those of a subject's class."""
        return len(self) - (0 if self.class_images is None else len(self.class_images))

    @property
    def num_views(self) -> int:
        rows = self.mean.buckets[0] if isinstance(self.mean, BucketRows) else self.mean
        return rows.shape[1]

    @property
    def num_enlarged(self) -> int:
        """Images smaller than the training size."""
        return (self.findings.enlarged or 0) if self.findings is not None else 0

    def shape(self, images: torch.Tensor) -> torch.Size:
        """(C, h, w) of a latent of images of one bucket."""
        rows = self.mean.bucket(images) if isinstance(self.mean, BucketRows) else self.mean
        return rows.shape[2:]

    def in_buckets(self, images: torch.Tensor) -> list[torch.Tensor]:
        """These images, those of each bucket by themselves, in their order."""
        if not isinstance(self.mean, BucketRows):
            return [images]
        numbers = self.mean.bucket_of[images]
        return [images[numbers == number] for number in numbers.unique().tolist()]

    def draw(
        self,
        indices: torch.Tensor | Sequence[int],
        generator: torch.Generator,
        rows: slice = slice(None),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (B, C, h, w) drawn from the posteriors of images of one bucket, and their classes
        (B,).

        Each draw is mean + std * noise, of a random view where there are two. The result depends
        on `generator` (a CPU generator, advanced) and on the indices, nothing else. `rows`: the
        latents of these only, as they are among all of them.
        """
        images = torch.as_tensor(indices, dtype=torch.long)
        views = torch.zeros(len(images), dtype=torch.long)
        if self.num_views > 1:
            views = torch.randint(self.num_views, (len(images),), generator=generator)
        noise = torch.randn((len(images), *self.shape(images)), generator=generator)[rows]
        mean, std = (part[images[rows], views[rows]] for part in (self.mean, self.std))
        return mean + std * noise, self.class_numbers[images]

    def with_class_images(self, others: "LatentSet") -> "LatentSet":
        """These images of a subject and, behind them, others of its class, with their captions."""
        captions = (self.captions or ()) + (others.captions or ())
        return dataclasses.replace(
            self,
            mean=MappedRows.joined(self.mean, others.mean),
            std=MappedRows.joined(self.std, others.std),
            class_numbers=torch.cat([self.class_numbers, others.class_numbers]),
            names=(*self.names, *(f"class images/{name}" for name in others.names)),
            contents=self.contents + others.contents,
            image_sizes=self.image_sizes + others.image_sizes,
            placements=None
            if self.placements is None or others.placements is None
            else torch.cat([self.placements, others.placements]),
            captions=captions or None,
            class_images=others,
        )

    def report(self) -> str:
        """What was found, and what of it had to be encoded, as lines of text."""
        contents = self.contents[: self.num_own]
        num_cached = self.num_own - num_copies(contents) - self.num_encoded
        lines = self.findings.lines() if self.findings is not None else []
        if self.class_images is not None:
            lines.append(f"beside them, of its class: {self.class_images.report()}")
        return "\n".join([*lines, f"{self.num_encoded:,} encoded, {num_cached:,} from the cache"])
