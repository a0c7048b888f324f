"""Changes of a file by a seed: of what it says, of its bytes, or of what is there in its place.

The changes of values and bytes themselves are in tests/fuzzing.py.
"""

import gzip
import io
import json
import os
import shutil
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import load, save

from smidgen.files.toml import toml
from tests.fuzzing import ODD, changed_bytes, changed_header, changed_json, changed_tensors

Change = Callable[[Path, Random], None]

DEEP_TEXTS = ('{"a":' * 50_000, "[" * 50_000, "{" * 3000, '{"a":' * 60 + "1" + "}" * 60)
ODD_TEXTS = ("", "null", "5", "[]", '"x"', "\x00", "NaN", '{"a":1e999}', "\ufeff{}", *DEEP_TEXTS)
ODD_NUMBERS = (0, 1, 3, 255, 2**31, 2**32 - 1)


def content(change: Callable[[bytes, Random], bytes]) -> Change:
    """A change of bytes as a change of the file that has them."""

    def apply(path: Path, rng: Random) -> None:
        path.write_bytes(change(path.read_bytes(), rng))

    apply.__name__ = change.__name__
    return apply


@content
def bytes_of(found: bytes, rng: Random) -> bytes:
    """One to three places of the bytes."""
    for _ in range(rng.choice((1, 1, 3))):
        found = changed_bytes(found, rng) if found else rng.randbytes(20)
    return found


@content
def csv_of(found: bytes, rng: Random) -> bytes:
    """One to five cells of a table, its header among them."""
    rows = [line.split(b",") for line in found.splitlines()]
    for _ in range(rng.choice((1, 1, 5))):
        row = rng.choice(rows)
        cell = rng.choice(rng.choice(rows)).decode()
        odd = rng.choice((cell, cell, "1e308", "-1e-308", "0", *ODD_TEXTS))
        row[rng.randrange(len(row))] = odd.encode()
    return b"\n".join(b",".join(row) for row in rows)


@content
def json_of(found: bytes, rng: Random) -> bytes:
    """One or two values of a JSON document, or another document."""
    if rng.random() < 0.1:
        return rng.choice(ODD_TEXTS).encode()
    value = json.loads(found)
    for _ in range(rng.choice((1, 1, 2))):
        value = changed_json(value, rng)
    return json.dumps(value).encode(rng.choice(("utf-8",) * 9 + ("utf-16",)))


@content
def json_lines(found: bytes, rng: Random) -> bytes:
    """A value in one line of JSON, or a line that is none."""
    lines = found.splitlines()
    number = rng.randrange(len(lines))
    changed = json.dumps(changed_json(json.loads(lines[number]), rng)).encode()
    lines[number] = rng.choice((changed, rng.choice(ODD_TEXTS).encode(), lines[number][:9]))
    return b"\n".join(lines) + b"\n"


@content
def toml_of(found: bytes, rng: Random) -> bytes:
    """One value of a TOML table, or text that is none."""
    if rng.random() < 0.1:
        return rng.choice(("a = " + "[" * 5000, "[a" * 99, "a.b = 1\na = 2", *ODD_TEXTS)).encode()
    table = changed_json(tomllib.loads(found.decode()), rng)
    if not isinstance(table, dict):
        return _inline(table).encode()
    lines = [f"{toml(name)} = {_inline(value)}\n" for name, value in table.items()]
    return "".join(lines).encode("utf-8", "replace")


@content
def tensors_of(found: bytes, rng: Random) -> bytes:
    """One or two tensors of a safetensors file; its metadata is as it was."""
    tensors = load(found)
    for _ in range(rng.choice((1, 1, 2))):
        tensors = changed_tensors(tensors, rng)
    return save(tensors, metadata=_metadata(found))


@content
def header_of(found: bytes, rng: Random) -> bytes:
    """A value in the header of a safetensors file."""
    return changed_header(found, rng)


@content
def metadata_of(found: bytes, rng: Random) -> bytes:
    """A value in the JSON that the metadata of a safetensors file holds."""
    metadata = _metadata(found)
    key = rng.choice(sorted(metadata))
    try:
        text = json.dumps(changed_json(json.loads(metadata[key]), rng))
    except ValueError:  # plain text
        text = rng.choice(ODD_TEXTS)
    metadata[key] = rng.choice((text, text, text, rng.choice(ODD_TEXTS)))
    return save(load(found), metadata=metadata)


@content
def pickle_of(found: bytes, rng: Random) -> bytes:
    """One tensor in a file of torch.save, or what holds them."""
    saved = torch.load(io.BytesIO(found), weights_only=True)
    inner = saved.get("state_dict", saved)
    changed = changed_tensors(dict(inner), rng)
    wrapped = rng.choice(
        (changed, {"state_dict": changed}, {"model": {"module": changed}}, {"ema": [changed]})
    )
    others = ([changed], {**changed, "step": 3}, {1: 2}, rng.choice(ODD), set(), print, Path("x"))
    value = rng.choice((wrapped, wrapped, rng.choice(others)))
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=rng.random() < 0.8)
    return file.getvalue()


@content
def arrays_of(found: bytes, rng: Random) -> bytes:
    """One array of a .npz: of another type, shape, value or name, gone, an object, too large."""
    with np.load(io.BytesIO(found)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    match rng.choice(("type", "shape", "value", "name", "gone", "object", "text", "zeros")):
        case "type" if array.dtype.kind in "fiub":
            with np.errstate(all="ignore"):
                arrays[name] = array.astype(rng.choice(("f2", "f8", "i1", "u8", "?", "c16", "U9")))
        case "shape":
            flat = array.reshape(-1)
            shapes = (flat, array[None], flat[:0], flat[: len(flat) // 2], np.tile(flat, 2))
            arrays[name] = rng.choice(shapes)
        case "value" if array.dtype.kind in "fiu" and array.size:
            values = (np.nan, np.inf, 1e300, -1.0, -(2**40)) if array.dtype.kind == "f" else (99, 0)
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice(values)
        case "name":
            arrays[rng.choice(("x", "arr_0", "a/b", "../x", "features"))] = arrays.pop(name)
        case "gone":
            del arrays[name]
        case "object":
            arrays[name] = np.array([{}, None], dtype=object)
        case "zeros":
            arrays[name] = np.zeros((2**20, 2**6), np.uint8)
        case _ if array.dtype.kind == "U":
            text = str(array)
            arrays[name] = np.array(json.dumps(changed_json(json.loads(text), rng)))
    file = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(file, **arrays)
    return file.getvalue()


@content
def zip_of(found: bytes, rng: Random) -> bytes:
    """The bytes of one member of a zip, whose checksum is right again."""
    with zipfile.ZipFile(io.BytesIO(found)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    members[name] = changed_bytes(members[name], rng) if members[name] else b"x"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return file.getvalue()


@content
def png_of(found: bytes, rng: Random) -> bytes:
    """A number of a PNG's first header, or one of its chunks, whose checksums are right again."""
    if found[:8] != b"\x89PNG\r\n\x1a\n":
        return changed_bytes(found, rng)
    chunks = _chunks(found)
    kind, data = chunks[0]
    match rng.choice(("width", "height", "form", "data", "twice")):
        case "width":
            chunks[0] = kind, rng.choice(ODD_NUMBERS).to_bytes(4, "big") + data[4:]
        case "height":
            chunks[0] = kind, data[:4] + rng.choice(ODD_NUMBERS).to_bytes(4, "big") + data[8:]
        case "form":
            chunks[0] = kind, data[:8] + rng.randbytes(5)
        case "data":
            number = rng.randrange(1, len(chunks))
            chunks[number] = chunks[number][0], changed_bytes(chunks[number][1] or b"x", rng)
        case _:
            chunks.insert(1, rng.choice(chunks))
    return _png(chunks)


@content
def png_text_of(found: bytes, rng: Random) -> bytes:
    """One or two values of the JSON that a PNG carries, or another text."""
    chunks = _chunks(found)
    number = next(n for n, (kind, _) in enumerate(chunks) if kind == b"iTXt")
    keyword, *_, text = chunks[number][1].split(b"\0", 5)
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        value = changed_json(value, rng)
    written = json.dumps(value) if rng.random() < 0.9 else rng.choice(ODD_TEXTS)
    body = b"\0".join((keyword, b"", b"", b"", b"", written.encode("utf-8", "replace")))
    chunks[number] = b"iTXt", body
    return _png(chunks)


def another(path: Path, rng: Random) -> None:
    """Something else under the file's name: nothing, a folder, a pipe, a device, another file."""
    others = [p for p in sorted(Path().rglob("*")) if p.is_file() and p.suffix == path.suffix]
    other = rng.choice(others) if others else path
    match rng.choice(("gone", "empty", "folder", "pipe", "device", "loop", "packed", "other")):
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "device":
            path.unlink()
            path.symlink_to("/dev/zero")
        case "loop":
            path.unlink()
            path.symlink_to(path.name)
        case "packed":
            path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        case _ if other != path:
            shutil.copyfile(other, path)


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of each chunk of a PNG."""
    chunks, place = [], 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        chunks.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def _png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with their right checksums."""
    parts = [
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _metadata(found: bytes) -> dict[str, str]:
    length = 8 + int.from_bytes(found[:8], "little")
    return json.loads(found[8:length]).get("__metadata__", {})


def _inline(value: object) -> str:
    if isinstance(value, dict):
        parts = (f"{toml(name)} = {_inline(inner)}" for name, inner in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return toml(value)
