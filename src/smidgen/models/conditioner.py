"""Prompts as conditions: what a base's text encoders make of them, kept so that each is read once:
a few in memory, many in a store on the disk.

B images, K prompts, L tokens. The encoders are handed in as a loader, used and let go: they are
often larger than the base itself. A condition is a mapping of tensors, images (or prompts) first.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smidgen.core.delta import Delta
from smidgen.core.weights import check_finite
from smidgen.errors import SmidgenError
from smidgen.hosts.family import Condition, Pipeline
from smidgen.models.components import quiet
from smidgen.models.condition_store import ConditionStore
from smidgen.models.prompt_files import PromptFiles
from smidgen.models.reader import Encode, Reader
from smidgen.sizes import ImageSize

# (labels (B,)) -> the condition of so many images
Conditions = Callable[[Tensor], Condition]

STORE_FORMAT = 1
STORED_BYTES = 2**28  # of the conditions of one file of a store
STORED_TEXTS = 1024
KEPT_TEXTS = 4096  # in memory: a gigabyte of those of Stable Diffusion 1.x

LENGTHS = ("text", "mask")  # their second axis counts tokens, and may differ between prompts


def labels_alone(labels: Tensor) -> Condition:
    """The condition of a base that knows classes by their numbers."""
    return {"labels": labels}


class Conditioner:
    """Encodes prompts; each distinct one once."""

    def __init__(
        self,
        load: Callable[[], Any],
        encode: Encode,
        image_size: ImageSize,
        files: PromptFiles | None = None,
    ) -> None:
        """`load` gives the pipeline whose encoders `encode` calls, for images of this size,
        from these files, None if there are none.
        """
        self._load = load
        self.files = files
        self._encode = encode
        self._image_size = image_size
        self._known: OrderedDict[str, Condition] = OrderedDict()  # the latest last
        self._reader: Reader | None = None  # while the encoders are kept
        self._lock = threading.RLock()  # encoders are changed while a delta acts in them

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """The encoders stay loaded until the end, for whoever is asked for prompts again and again.

        Raises: SmidgenError if they cannot be loaded.
        """
        with self.open() as reader:
            self._reader = reader
            try:
                yield
            finally:
                self._reader = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], delta: Delta | None = None) -> Condition:
        """The conditions of K prompts, a row each, on the CPU; "" is the prompt of no class. With a
        `delta` that has edits in text encoders they act there, and nothing is kept of what they
        make: its values may be others the next time.

        Every prompt is encoded by itself, so that what it becomes does not depend on the others;
        texts of fewer tokens are filled up with zeros that their mask leaves out.

        Raises: SmidgenError for no prompts, encoders that cannot be loaded, that fail or give
            numbers that are not finite, or texts of different lengths that have no mask, or a delta
            of others.
        """
        if not prompts:
            raise SmidgenError("no prompts to encode; give at least one")
        if delta is not None and delta.components:
            with self._loaded(delta) as read:
                changed = {prompt: read(prompt) for prompt in dict.fromkeys(prompts)}
            return rows_of([changed[prompt] for prompt in prompts])
        with self._lock:
            missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
            if missing:
                with self._loaded() as read:
                    for prompt in missing:
                        self._known[prompt] = read(prompt)
            for prompt in prompts:
                self._known.move_to_end(prompt)
            found = rows_of([self._known[prompt] for prompt in prompts])
            while len(self._known) > KEPT_TEXTS:
                self._known.popitem(last=False)
        return found

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The encoders, loaded until the end; what they make of prompts is not kept.

        Raises: SmidgenError if they cannot be loaded.
        """
        described = Pipeline() if self.files is None else self.files.pipeline
        reader = Reader(self._load(), self._encode, self._image_size, described)
        for one in reader.encoders:
            one.network.requires_grad_(False).eval()
        try:
            yield reader
        finally:
            reader.close()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @contextmanager
    def _loaded(self, delta: Delta | None = None) -> Iterator[Callable[[str], Condition]]:
        """The encoders as a function of one prompt, let go at the end."""

        def read(prompt: str) -> Condition:
            condition = {name: value.cpu() for name, value in reader.read([prompt]).items()}
            remedy = "load the base in a precision of wider range, bf16 or fp32"
            check_finite(condition, f'what the encoders make of "{prompt}"', remedy)
            return condition

        with self._lock, ExitStack() as stack:
            reader = self._reader or stack.enter_context(self.open())
            if delta is not None:
                stack.enter_context(reader.attached(delta))
            yield read

    def conditions(
        self,
        prompts: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        delta: Delta | None = None,
    ) -> Conditions:
        """Label i as the condition of prompt i. Raises: SmidgenError as `encode`."""
        rows = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self.encode(prompts, delta).items()
        }
        return lambda labels: {name: value[labels] for name, value in rows.items()}

    @torch.no_grad()
    def fill(
        self,
        prompts: Sequence[str],
        folder: Path,
        dtype: torch.dtype,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Encode what the store of these encoders below `folder` lacks of many prompts; `dtype` is
        the base's and theirs, `report(done, in all)` is called for each. A killed run keeps what it
        wrote.

        Raises: SmidgenError as `encode`, or if the disk refuses.
        """
        store = ConditionStore(self._place(folder, dtype))
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in store]
        if not missing:
            return
        waiting: dict[str, Condition] = {}
        num_bytes = 0
        with self._loaded() as read, quiet():  # which texts are cut was said before
            for number, prompt in enumerate(missing, start=1):
                waiting[prompt] = read(prompt)
                num_bytes += sum(value.nbytes for value in waiting[prompt].values())
                full = num_bytes >= STORED_BYTES or len(waiting) == STORED_TEXTS
                if full or number == len(missing):
                    store.add(waiting)
                    waiting, num_bytes = {}, 0
                if report is not None:
                    report(number, len(missing))

    def stored(
        self, prompts: Sequence[str], folder: Path, device: torch.device, dtype: torch.dtype
    ) -> Conditions:
        """Label i as the condition of prompt i, of which a batch's rows alone are read from the
        store that `fill` filled, and moved.

        Raises: SmidgenError for texts of different lengths that have no mask.
        """
        store = ConditionStore(self._place(folder, dtype))
        rows = [store[prompt] for prompt in prompts]
        longest = _longest(rows)

        def conditions(labels: Tensor) -> Condition:
            found = rows_of([rows[label] for label in labels.tolist()], longest)
            return {
                name: value.to(device, dtype if value.is_floating_point() else None)
                for name, value in found.items()
            }

        return conditions

    def _place(self, folder: Path, dtype: torch.dtype) -> Path:
        """By all that a condition depends on besides its text."""
        assert self.files is not None, "conditions are stored by the files of their encoders"
        spec = (STORE_FORMAT, self.files.fingerprint, str(dtype), self._image_size.plain)
        return folder / "conditions" / hashlib.sha256(repr(spec).encode()).hexdigest()[:32]


def _longest(conditions: Sequence[Condition]) -> dict[str, int]:
    """The most tokens that one of these has.

    Raises: SmidgenError for different numbers of them without a mask.
    """
    longest = {
        name: max(condition[name].shape[1] for condition in conditions)
        for name in LENGTHS
        if name in conditions[0]
    }
    if "mask" not in longest:
        lengths = sorted({condition["text"].shape[1] for condition in conditions if longest})
        if len(lengths) > 1:
            raise SmidgenError(
                f"the text encoder gives texts of {lengths[0]} to {lengths[-1]} tokens without a "
                "mask; expected one length for all prompts"
            )
    return longest


def rows_of(conditions: Sequence[Condition], longest: Mapping[str, int] | None = None) -> Condition:
    """Conditions of single prompts as one of all of them, of so many tokens, None: as they need."""
    longest = _longest(conditions) if longest is None else longest
    filled = [
        {name: _fill(value, longest.get(name)) for name, value in condition.items()}
        for condition in conditions
    ]
    return {name: torch.cat([condition[name] for condition in filled]) for name in filled[0]}


def _fill(value: Tensor, length: int | None) -> Tensor:
    """(1, L, ...) -> (1, length, ...) with zeros."""
    if length is None or value.shape[1] == length:
        return value
    behind = (0, 0) * (value.ndim - 2) + (0, length - value.shape[1])
    return functional.pad(value, behind)
