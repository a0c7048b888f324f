"""Files of weights: how safetensors are opened, and what every tensor of a file, whoever wrote it,
must be before it is used: of floating point, finite, and of the expected shape.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from smidgen.errors import SmidgenError
from smidgen.files.names import check_utf8
from smidgen.files.reading import in_one_line, size_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SMALL = (  # to keep numbers in, not to compute with
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
MOST_HEADER_BYTES = 2**25  # of a safetensors file: those of the largest models have a few 100,000
MOST_TENSORS = 100_000
MOST_NAME_LENGTH = 1000
MOST_NAMED = 3


@contextmanager
def open_safetensors(path: Path | str) -> Iterator[Any]:
    """The open file, of safetensors' own class; tensors come mapped from the disk.

    Raises: SmidgenError, inside the `with` too, if there is no such file, it is a pipe or device,
        or damaged, or its header is beyond all measure.
    """
    check_utf8(str(path), "the file")
    size = size_of(path)
    try:
        with Path(path).open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
        if MOST_HEADER_BYTES < length < size:
            raise damaged(path, f"its header has {length:,} bytes")
        with safe_open(path, framework="pt") as file:
            check_names(file.keys(), path)
            yield file
    except SafetensorError as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise SmidgenError(f"cannot read {path}: {error.strerror or error}") from error


def read_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, mapped from the disk and not checked, and its metadata.

    Raises: SmidgenError as `open_safetensors`.
    """
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def damaged(path: Path | str, why: str) -> SmidgenError:
    """The error of a file that is not what its name promises."""
    return SmidgenError(f"{path} is truncated or damaged ({in_one_line(why)}); get the file again")


def check_names(names: Collection[str], source: Path | str) -> None:
    """Raises: SmidgenError if these are no names of tensors: beyond number or length, or with
    characters that are not shown.
    """
    if len(names) > MOST_TENSORS:
        raise damaged(source, f"it names {len(names):,} tensors")
    for name in names:
        if len(name) > MOST_NAME_LENGTH or not name.isprintable():
            raise damaged(source, f"it names a tensor {name[:40]!r}")


def checked(tensors: Mapping[str, Tensor], source: Path | str) -> dict[str, Tensor]:
    """The same tensors, in float32 where they are in 8 bit.

    Raises: SmidgenError naming tensors that are not of floating point, or not finite.
    """
    odd = {name: t.dtype for name, t in tensors.items() if t.dtype not in (*FLOATS, *SMALL)}
    if odd:
        kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in odd.values()}))
        raise SmidgenError(
            f"{source} holds {kinds} where weights are of floating point: {some(odd)}; save them "
            "in 16 or 32 bit"
        )
    check_finite(tensors, source)
    return {name: t.float() if t.dtype in SMALL else t for name, t in tensors.items()}


DAMAGED = "the weights are damaged; get them anew"


def check_finite(tensors: Mapping[str, Tensor], source: Path | str, remedy: str = DAMAGED) -> None:
    """One pass at the speed of memory, without a copy: 0.1 to 0.3 s for a gigabyte on two cores.
    What holds no plain floating point (integers, the packed numbers of quantised models, the meta
    device) is passed by.

    Raises: SmidgenError naming the tensors with numbers that are not finite, ending in `remedy`.
    """
    wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor.detach())]
    if wrong:
        raise SmidgenError(f"{source}: not finite (NaN or infinity): {some(wrong)}; {remedy}")


def check_shapes(
    expected: Mapping[str, torch.Size],
    given: Mapping[str, Tensor],
    source: Path | str,
    what: str = "model",
) -> None:
    """Raises: SmidgenError for a tensor that is missing, unknown, of another shape than expected or
    not of floating point, naming up to three; `what` asks for them.
    """
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in expected]
    for name, shape in expected.items():
        if name in given and given[name].shape != shape:
            wrong.append(f"{name} is {tuple(given[name].shape)}, expected {tuple(shape)}")
        elif name in given and not given[name].is_floating_point():
            wrong.append(f"{name} holds {given[name].dtype}, expected floating point")
    if wrong:
        raise SmidgenError(f"{source} does not fit its {what}: {some(wrong, '; ')}")


def some(names: Collection[str], separator: str = ", ") -> str:
    """The first three of these, and how many more there are."""
    shown = separator.join(list(names)[:MOST_NAMED])
    more = len(names) - MOST_NAMED
    return f"{shown}, and {more} more" if more > 0 else shown


def _is_finite(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in (*FLOATS, *SMALL)
    if not plain or tensor.is_meta or not tensor.numel():
        return True
    values = tensor.float() if tensor.dtype in SMALL else tensor
    least, most = torch.aminmax(values)  # NaN passes through
    return bool(least.isfinite() & most.isfinite())
