"""The settings that a drawn PNG carries, and how it is drawn again from them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from smidgen.errors import UsageError
from smidgen.files.names import excerpt
from smidgen.files.png_text import read_png_text
from smidgen.files.reading import Unreadable, fit, parse_json, sha256_of
from smidgen.sampling.config import FILES

if TYPE_CHECKING:
    from smidgen.models.base import Base
    from smidgen.sampling.draw import Drawing

KEYWORD = "smidgen"


class OwnSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What made one picture. `files` are the settings that are files, and the delta, by their
    SHA-256; `settings` all others by the names of the flags; `model` is what a server that drew it
    calls the delta, or a sum of several, which no file is.
    """

    number: int
    shows: str
    base_fingerprint: str
    settings: dict[str, Any]
    files: dict[str, str] = {}
    model: str | None = None
    version: str = ""

    def check_files(self, given: Mapping[str, Path | str | None], path: Path) -> None:
        """Raises: UsageError unless the `given` files by name are those that made the picture at
        `path`.
        """
        for name, file in given.items():
            flag, hashed = f"--{name.replace('_', '-')}", self.files.get(name)
            if hashed is None and file is not None:
                raise UsageError(f"{path} was drawn without a file for {flag}; leave it out")
            if hashed is None:
                continue
            wanted = f"that of SHA-256 {hashed[:12]}..."
            if file is None:
                raise UsageError(f"{path} was drawn with a file for {flag}; give {wanted}")
            if not Path(file).is_file():
                raise UsageError(f"no such file: {file}; for {flag} give {wanted}")
            if sha256_of(file) != hashed:
                raise UsageError(
                    f"{file} is not the file with which {path} was drawn; for {flag} give {wanted}"
                )

    def check_base(self, base: Base, path: Path) -> None:
        """Raises: UsageError for another base than that of the picture at `path`, or another size
        of its images.
        """
        if base.fingerprint != self.base_fingerprint:
            raise UsageError(
                f'{path} was drawn by another base than "{base.name}" is now; give --base that of '
                f"fingerprint {excerpt(self.base_fingerprint)}"
            )
        size = self.settings.get("image_size")
        if size is not None and str(size) != str(base.image_size):
            raise UsageError(
                f"{path} was drawn at image_size {excerpt(str(size))}, and base "
                f'"{base.name}" is at {base.image_size}; load it at that size'
            )


def own_text(
    drawing: Drawing, number: int, settings: Mapping[str, Any], model: str | None = None
) -> str:
    """The JSON that the image of this number carries, made of the settings of its folder: equal
    requests give equal bytes.
    """
    files = {name: settings[name] for name in FILES if settings.get(name)}
    if settings.get("delta_sha256"):
        files["delta"] = settings["delta_sha256"]
    others = {
        name: value
        for name, value in settings.items()
        if name not in (*FILES, "delta_sha256", "numbers") and value is not None
    }
    base, config = drawing.base, drawing.config
    others |= {"num_images": drawing.num_images, "batch_size": config.batch_size}
    others["image_size"] = base.image_size.plain
    if base.positions is not None:
        others["positions"] = base.positions
    found = OwnSettings(
        number=number,
        shows=drawing.name(number),
        base_fingerprint=base.fingerprint,
        settings=others,
        files=files,
        model=model,
        version=version("smidgen"),
    )
    return msgspec.json.encode(found, order="sorted").decode()


def read_own_settings(path: Path) -> OwnSettings:
    """The settings in a PNG.

    Raises: UsageError for what is no PNG, has none, or has some that are damaged.
    """
    try:
        text = read_png_text(path, KEYWORD)
        if text is None:
            raise UsageError(
                f"{path} has no settings of smidgen in it; give a picture of smidgen sample, as it "
                "was written"
            )
        # any JSON first: how deep it is must be known before it is taken apart
        found = fit(parse_json(text, dict[str, Any]), OwnSettings)
    except Unreadable as error:
        raise UsageError(
            f"cannot draw {path} again: {error.reason}; give a picture of smidgen sample, as it "
            "was written"
        ) from error
    if not 0 <= found.number < 2**31:
        raise UsageError(f"cannot draw {path} again: its number is {found.number}")
    return found
