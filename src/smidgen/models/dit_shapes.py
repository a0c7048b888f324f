"""What the tensors of a DiT alone tell: its configuration by the shapes, and its positions.

D width, N tokens. The tensors have the names of the released `.pt`; no file is opened here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.models.dit import DIT_SIZES, DiTConfig, position_table
from smidgen.models.positions import Positions

FIRST = "x_embedder.proj.weight"  # which every DiT has
# bf16 keeps 8 bits of a value of at most 1
POSITION_TOLERANCE = 4e-3


def infer_config(
    state: Mapping[str, Tensor], source: Path, *, num_heads: int | None = None
) -> DiTConfig:
    """The configuration that fits an original state dict's shapes; heads by the family's table.

    Raises: SmidgenError for tensors that are not a DiT's, or a width outside the family without
        `num_heads`.
    """
    try:
        width, in_channels, patch_size, _ = state[FIRST].shape
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        rows = state["final_layer.linear.weight"].shape[0]
        num_classes = state["y_embedder.embedding_table.weight"].shape[0] - 1
        grid_size = math.isqrt(state["pos_embed"].shape[1])
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        out_channels, ratio = rows // patch_size**2, _ratio(hidden, width)
    except (KeyError, ValueError, IndexError, ArithmeticError) as error:
        raise SmidgenError(
            f"{source} does not hold the tensors of a DiT ({error} is missing or has another "
            "shape); give a base of another kind as its diffusers folder"
        ) from error
    heads = {family_width: count for family_width, _, count in DIT_SIZES.values()}
    num_heads = num_heads or heads.get(width)
    if num_heads is None:
        raise SmidgenError(
            f"{source} is {width} wide, which is not of the DiT family, and its shapes do not tell "
            "the number of heads: give num_heads, or a config.json beside it"
        )
    if out_channels not in (in_channels, 2 * in_channels):
        raise SmidgenError(f"{source}: final_layer.linear has {rows} rows, not those of a DiT")
    try:
        return DiTConfig(
            image_size=grid_size * patch_size,
            patch_size=patch_size,
            in_channels=in_channels,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=ratio,
            num_classes=num_classes,
            learn_sigma=out_channels == 2 * in_channels,
        )
    except ValueError as error:
        raise SmidgenError(f"{source}: {error}") from error


def without_prefix(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The state dict without what stands before all of its names, such as "model." where it was a
    part of something larger.

    Raises: SmidgenError if there are several DiTs under different prefixes, or tensors outside it.
    """
    stems = [name.removesuffix(FIRST) for name in state if name.endswith(f".{FIRST}")]
    if FIRST in state or not stems:
        return state
    outside = next((name for name in state if not name.startswith(stems[0])), None)
    if outside is not None:
        raise SmidgenError(
            f'{source} holds a DiT whose names begin with "{stems[0]}", and other tensors '
            f"({outside}); save the DiT alone"
        )
    return {name.removeprefix(stems[0]): tensor for name, tensor in state.items()}


def at_size(
    config: DiTConfig,
    latent_size: tuple[int, int],
    source: Path | str,
    positions: Positions = "extend",
) -> DiTConfig:
    """The configuration for latents of another size (h, w): with "stretch", positions are as far
    apart as lets them cover the same range down and across (DiffFit's positional trick, which has
    (i/2, j/2) at twice the size), with "extend" as far as they were.

    Raises: SmidgenError for an impossible size.
    """
    height, width = latent_size
    down, across = config.spacing
    if positions == "stretch":
        own_height, own_width = config.latent_size
        down, across = down * own_height / height, across * own_width / width
    try:
        return dataclasses.replace(
            config,
            image_size=height,
            image_width=None if width == height else width,
            spacing=(down, across),
        )
    except ValueError as error:
        raise SmidgenError(f"{source}: {error}") from error


def fit_positions(
    config: DiTConfig,
    state: dict[str, Tensor],
    latent_size: tuple[int, int] | None,
    source: Path,
    positions: Positions = "extend",
) -> tuple[DiTConfig, dict[str, Tensor]]:
    """The state with the position table of the wanted size (h, w), None: the configuration's.

    Computed, unless the file's is not the fixed table: that is kept.

    Raises: SmidgenError for an impossible size, or another than that of a table that is not fixed.
    """
    own = config
    if latent_size is not None:
        config = at_size(own, latent_size, source, positions)
    table = state.get("pos_embed")
    if table is not None and not (is_fixed_table(table) or _is_table_of(own, table)):
        if table.shape[1] != math.prod(config.grid) or config.grid != own.grid:
            own_size = math.isqrt(table.shape[1]) * config.patch_size
            raise SmidgenError(
                f"{source} has positions that are not the fixed table and cannot be computed for "
                f"another size; load it at {own_size} latent pixels"
            )
        return own, state
    return config, {
        **state,
        "pos_embed": position_table(config.width, config.grid, config.spacing),
    }


def is_fixed_table(table: Tensor) -> bool:
    """Whether this is the table of the released weights for some square grid."""
    if table.ndim != 3 or table.shape[2] % 4 or math.isqrt(table.shape[1]) ** 2 != table.shape[1]:
        return False
    side = math.isqrt(table.shape[1])
    return _is_near(table, position_table(table.shape[2], (side, side)))


def _is_table_of(config: DiTConfig, table: Tensor) -> bool:
    """Whether this is what would be computed: the table of a folded base may be stretched."""
    if table.shape != (1, math.prod(config.grid), config.width):
        return False
    return _is_near(table, position_table(config.width, config.grid, config.spacing))


def _is_near(table: Tensor, fixed: Tensor) -> bool:
    return bool((table.detach().cpu().float() - fixed).abs().max() <= POSITION_TOLERANCE)


def _ratio(hidden: int, width: int) -> float:
    ratio = hidden / width
    # The model rounds width * ratio down.
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
