"""A DiT in diffusers' words: names, configuration, scheduler and pipeline index, both ways.

Pure functions of dicts, after `DiTTransformer2DModel` of diffusers 0.42; diffusers itself is not
imported. There queries, keys and values are apart, and every block repeats the timestep and label
embedders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smidgen.diffusion.schedule import Schedule
from smidgen.errors import SmidgenError
from smidgen.hosts.dit import diffusers_names
from smidgen.hosts.renaming import ENDS, modules_of
from smidgen.models.dit import DiT, DiTConfig

DIFFUSERS_SHIFT = 1.0  # the frequency shift built into diffusers' DiT
PIPELINE_CLASSES = 1000  # DiTPipeline guides with the label 1000 as null, whatever the table
TABLE = "y_embedder.embedding_table.weight"

REPEATED = {  # parameter -> the parameter of every block
    "t_embedder.mlp.0.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "norm1.emb.class_embedder.embedding_table.weight",
}
REQUIRED = {  # what diffusers can vary and this architecture does not -> its value
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


def to_diffusers(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our state dict under diffusers' names; the fixed position table is not among them.

    The tensors share memory with `state`, the repeated embedders with each other.
    """
    renamed = {}
    for ours, theirs in diffusers_names(modules_of(state)).modules.items():
        for end in ENDS:
            parts = state[f"{ours}.{end}"].chunk(len(theirs))
            renamed |= {f"{name}.{end}": part for name, part in zip(theirs, parts, strict=True)}
    for index in range(depth):
        for ours, theirs in REPEATED.items():
            renamed[f"transformer_blocks.{index}.{theirs}"] = state[ours]
    return renamed


def from_diffusers(state: Mapping[str, Tensor], depth: int, source: Path) -> dict[str, Tensor]:
    """A complete state dict of diffusers under our names, without the position table.

    Raises: SmidgenError if the embedders differ between blocks, so that no single one can stand for
        them.
    """
    renamed = {}
    for ours, theirs in REPEATED.items():
        renamed[ours] = state[f"transformer_blocks.0.{theirs}"]
        for index in range(1, depth):
            if not torch.equal(renamed[ours], state[f"transformer_blocks.{index}.{theirs}"]):
                raise SmidgenError(
                    f"{source}: {theirs} of block {index} differs from that of block 0; DiT has "
                    "one for all blocks, so a folder trained apart cannot be read"
                )
    for ours, theirs in diffusers_names(
        [f"blocks.{index}" for index in range(depth)]
    ).modules.items():
        for end in ENDS:
            parts = [state[f"{name}.{end}"] for name in theirs]
            renamed[f"{ours}.{end}"] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return renamed


def pad_classes(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """Our state dict with a label table of `num_classes` classes: what is missing are copies of the
    null row, which stays last. DiTPipeline finds its null there.

    Raises: SmidgenError if the table has more classes than that.
    """
    table = state[TABLE]
    missing = num_classes + 1 - len(table)
    if missing < 0:
        raise SmidgenError(
            f"{len(table) - 1} classes do not fit DiTPipeline, whose label {num_classes} is the "
            "null label; write the original format instead"
        )
    return {**state, TABLE: torch.cat([table, table[-1:].expand(missing, -1)])}


def strip_classes(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """`pad_classes` undone: the first `num_classes` rows and the last, the null row."""
    table = state[TABLE]
    return {**state, TABLE: torch.cat([table[:num_classes], table[-1:]])}


def padded_classes(config: Mapping[str, Any], source: Path) -> int | None:
    """Rows of classes in the files of a padded `transformer/`, None: it is not padded.

    Raises: SmidgenError if the record does not fit the table's size.
    """
    if "_num_classes" not in config:
        return None
    total, own = config.get("num_embeds_ada_norm"), config["_num_classes"]
    if total is None or own > total:
        raise SmidgenError(f"{source}: _num_classes is {own!r} with num_embeds_ada_norm {total!r}")
    return total


def diffusers_shapes(config: DiTConfig) -> dict[str, torch.Size]:
    """Names and shapes of diffusers' parameters for this architecture."""
    with torch.device("meta"):
        state = DiT(config).state_dict()
    return {name: t.shape for name, t in to_diffusers(state, config.depth).items()}


def config_from_diffusers(config: Mapping[str, Any], source: Path) -> DiTConfig:
    """Our configuration from `transformer/config.json`; absent keys mean diffusers' defaults.

    The frequency shift is what smidgen recorded when it wrote the folder, else 0, that of the
    released weights, and so is the number of classes of a padded table. `norm_eps` is ignored: 1e-6
    as in training.

    Raises: SmidgenError for what is no DiT, or a variant of it that this architecture does not
        have.
    """
    for key, value in REQUIRED.items():
        if config.get(key, value) != value:
            raise SmidgenError(f'{source}: {key} is "{config[key]}"; a DiT has "{value}"')
    in_channels = config.get("in_channels", 4)
    out_channels = config.get("out_channels") or in_channels
    if out_channels not in (in_channels, 2 * in_channels):
        raise SmidgenError(
            f"{source}: out_channels is {out_channels}; expected {in_channels} or {2 * in_channels}"
        )
    num_heads = config.get("num_attention_heads", 16)
    is_padded = padded_classes(config, source) is not None
    num_classes = config["_num_classes"] if is_padded else config.get("num_embeds_ada_norm", 1000)
    try:
        return DiTConfig(
            image_size=config.get("sample_size", 32),
            patch_size=config.get("patch_size", 2),
            in_channels=in_channels,
            width=num_heads * config.get("attention_head_dim", 72),
            depth=config.get("num_layers", 28),
            num_heads=num_heads,
            num_classes=num_classes,
            learn_sigma=out_channels == 2 * in_channels,
            frequency_shift=float(config.get("_frequency_shift", 0.0)),
        )
    except (TypeError, ValueError) as error:
        raise SmidgenError(f"{source}: {error}") from error


def config_to_diffusers(config: DiTConfig, num_rows: int | None = None) -> dict[str, Any]:
    """`transformer/config.json`; the frequency shift of training is recorded under a private key.

    `num_rows`: classes of the table as padded, of which the true number is recorded likewise.

    Raises: SmidgenError for a feed-forward that is not 4 times as wide, which diffusers cannot
        express.
    """
    if config.mlp_ratio != 4:
        raise SmidgenError(
            f"diffusers' DiT has a feed-forward 4 times as wide as its tokens, this one "
            f"{config.mlp_ratio:g} times; write the original format instead"
        )
    padded = num_rows is not None and num_rows != config.num_classes
    return {
        "_class_name": "DiTTransformer2DModel",
        "_diffusers_version": version("diffusers"),
        "_frequency_shift": config.frequency_shift,
        **({"_num_classes": config.num_classes} if padded else {}),
        **REQUIRED,
        "attention_head_dim": config.width // config.num_heads,
        "dropout": 0.0,
        "in_channels": config.in_channels,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "num_attention_heads": config.num_heads,
        "num_embeds_ada_norm": num_rows or config.num_classes,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.image_size,
        "upcast_attention": False,
    }


def schedule_from_diffusers(config: Mapping[str, Any], source: Path) -> Schedule:
    """The training schedule behind a scheduler's configuration.

    Raises: SmidgenError if the network does not predict noise, or for betas of an unknown kind.
    """
    kind = config.get("beta_schedule", "linear")
    predicted = config.get("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise SmidgenError(f'{source}: the network predicts "{predicted}"; only epsilon is known')
    try:
        if config.get("trained_betas") is not None:
            return Schedule.from_betas(torch.tensor(config["trained_betas"], dtype=torch.float64))
        num_steps = config.get("num_train_timesteps", 1000)
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        if kind == "linear":
            return Schedule.linear(num_steps, start, end)
        if kind == "scaled_linear":
            roots = torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float64)
            return Schedule.from_betas(roots**2)
    except (TypeError, ValueError) as error:
        raise SmidgenError(f"{source}: {error}") from error
    raise SmidgenError(f'{source}: beta_schedule is "{kind}"; expected linear or scaled_linear')


def schedule_to_diffusers(schedule: Schedule) -> dict[str, Any]:
    """The configuration of diffusers' DDIMScheduler for this training schedule."""
    betas = schedule.betas
    linear = Schedule.linear(len(betas), float(betas[0]), float(betas[-1])).betas
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": version("diffusers"),
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "beta_schedule": "linear",
        "clip_sample": False,
        "num_train_timesteps": len(betas),
        "prediction_type": "epsilon",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "trained_betas": None if torch.allclose(betas, linear, rtol=1e-9) else betas.tolist(),
    }


def pipeline_index(class_names: Sequence[str]) -> dict[str, Any]:
    """`model_index.json` of a DiTPipeline; the exact class names are kept under a private key.

    DiTPipeline splits its labels at commas, so they alone would not give the names back.
    """
    return {
        "_class_name": "DiTPipeline",
        "_diffusers_version": version("diffusers"),
        "_class_names": list(class_names),
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def class_names_of_index(index: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """One unique name for each class from `model_index.json`: the first synonym of each label.

    ImageNet has two classes "crane": names that occur twice get their number, classes without a
    label are their number.
    """
    exact = index.get("_class_names")
    if isinstance(exact, list) and len(exact) == num_classes:
        return tuple(str(name) for name in exact)
    labels = index.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    names = [str(labels.get(str(i), i)).split(",")[0].strip() or str(i) for i in range(num_classes)]
    counts = Counter(names)
    return tuple(f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names))
