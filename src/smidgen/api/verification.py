"""`verify`: whether a base with its released weights is what was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smidgen.files.settings import check_values, fill
from smidgen.progress import counting_bar
from smidgen.verification.config import VerifiedBase, VerifyConfig
from smidgen.verification.run import Tell
from smidgen.verification.run import verify as verify_base


def verify(base: str | Path, *, progress: bool = False, **settings: Any) -> dict[str, Any]:
    """The document of a verification, as `smidgen verify` writes it to verify.json: the files by
    their hashes, the network against stock diffusers, a training twice, and the published number
    of the base if there is one that is known. `verdict` is pass, fail or incomplete, and each of
    `checks` has a `status` (pass, fail, not possible), what was `found`, and its `facts`.

    `settings`: those of VerifiedBase (codec, image_size, positions, frequency_shift, device) and
    VerifyConfig (checks, reference, num_images, precision, weights, batch_size, seed, cache_dir).

    Raises: UsageError for a setting that makes no sense; SmidgenError if the base cannot be loaded.
    """
    given = {**settings, "base": str(base)}
    values = check_values(given, VerifiedBase, VerifyConfig, source="", kind="setting")
    return run(fill(VerifiedBase, values), fill(VerifyConfig, values), progress=progress)


def run(
    options: VerifiedBase,
    config: VerifyConfig,
    *,
    tell: Tell | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """`verify` with its settings as objects; `tell` is given a line after each check."""
    with counting_bar("drawing", progress=progress) as report:
        return verify_base(options, config, tell=tell, progress=report)
