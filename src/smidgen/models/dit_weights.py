"""Files of DiT weights <-> our state dict: the original `.pt`, our folder, the diffusers folder.

D width, N tokens. Reading keeps the file's precision and maps the file instead of copying it. Class
names and schedule are those that its folder says; whole bases are read in pretrained.py.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smidgen.core.weights import check_finite, check_shapes
from smidgen.diffusion.schedule import Schedule
from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, fit
from smidgen.files.writing import write_json
from smidgen.models.codec import Codec, save_codec
from smidgen.models.dit import DiT, DiTConfig
from smidgen.models.dit_diffusers import (
    DIFFUSERS_SHIFT,
    PIPELINE_CLASSES,
    class_names_of_index,
    config_from_diffusers,
    config_to_diffusers,
    diffusers_shapes,
    from_diffusers,
    pad_classes,
    padded_classes,
    pipeline_index,
    schedule_from_diffusers,
    schedule_to_diffusers,
    strip_classes,
    to_diffusers,
)
from smidgen.models.dit_shapes import (
    fit_positions,
    infer_config,
    is_fixed_table,
    without_prefix,
)
from smidgen.models.files import (
    read_json,
    read_tensors,
    recorded,
    weight_files,
    write_pickle,
    write_safetensors_file,
)
from smidgen.models.schemas import DiffusersDiT, Folder, Scheduler

FORMAT = "smidgen-base"
WEIGHTS = "dit.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")

logger = logging.getLogger(__name__)


def read_dit(
    path: str | Path,
    *,
    frequency_shift: float | None = None,
    num_heads: int | None = None,
) -> tuple[DiTConfig, dict[str, Tensor]]:
    """Configuration and state dict, with our names in the file's precision, of a DiT on disk.

    `frequency_shift` None: what was recorded, else 0, that of the released weights. `num_heads` is
    needed only for a lone file of another program and of a width outside the family.

    Raises: SmidgenError if nothing there can be read, for a pickle with more than tensors, a
        truncated file, or missing, unknown or mis-shaped tensors.
    """
    path = Path(path)
    if path.is_dir():
        transformer = diffusers_folder(path)
        if (path / WEIGHTS).is_file():
            config = config_of_folder(path)
            state = read_tensors(path / WEIGHTS)
        elif transformer is not None:
            config, state = _read_diffusers(transformer)
        else:
            raise SmidgenError(
                f"{path} holds no base: expected a pipeline of diffusers (model_index.json), or "
                f"{WEIGHTS} with config.json"
            )
    else:
        state = without_prefix(read_tensors(path), path)
        if any(name.startswith("transformer_blocks.") for name in state):
            raise SmidgenError(f"{path} has diffusers' names; give its folder, with config.json")
        config = _config_of_file(state, path, num_heads)
    if frequency_shift is not None:
        config = dataclasses.replace(config, frequency_shift=float(frequency_shift))
    config, state = fit_positions(config, state, None, path)
    with torch.device("meta"):
        check_shapes({k: t.shape for k, t in DiT(config).state_dict().items()}, state, path)
    return config, state


def read_config(path: str | Path, *, num_heads: int | None = None) -> DiTConfig:
    """The configuration alone, as `read_dit` would give it; of a file the shapes tell it.

    Raises: SmidgenError as `read_dit`, as far as the configuration shows it.
    """
    path = Path(path)
    transformer = diffusers_folder(path)
    if (path / "config.json").is_file() and (path / WEIGHTS).is_file():
        return config_of_folder(path)
    if transformer is not None:
        document = read_json(transformer / "config.json", DiffusersDiT)
        return config_from_diffusers(document, transformer)
    return read_dit(path, num_heads=num_heads)[0]


def diffusers_folder(path: Path) -> Path | None:
    """The transformer's folder if `path` is a diffusers pipeline or transformer, else None."""
    for folder in (path / "transformer", path):
        config = folder / "config.json"
        if config.is_file() and read_json(config, Folder).get("_class_name") in DIFFUSERS_CLASSES:
            return folder
    return None


def config_of_folder(folder: Path) -> DiTConfig:
    """The `dit` entry of our own `config.json`. Raises: SmidgenError if it is not one."""
    document = read_json(folder / "config.json")
    fields = document.get("dit")
    known = {field.name for field in dataclasses.fields(DiTConfig)}
    if document.get("format") != FORMAT or not isinstance(fields, dict) or set(fields) - known:
        raise SmidgenError(f'{folder}/config.json is not a "{FORMAT}" that this version can read')
    try:
        return fit(fields, DiTConfig)
    except Unreadable as error:
        raise SmidgenError(f"{folder}/config.json: {error.reason}") from error


def class_names_of(
    described: Mapping[str, Any], config: DiTConfig, source: Path
) -> tuple[str, ...]:
    """One name for each class, from our config.json or a pipeline's index.

    Raises: SmidgenError for names that do not fit the number of classes.
    """
    if described.get("format") != FORMAT or "class_names" not in described:
        return class_names_of_index(described, config.num_classes)
    names = tuple(described["class_names"])
    if len(names) != config.num_classes or len(set(names)) != len(names):
        raise SmidgenError(
            f"{source}/config.json lists {len(set(names))} different class names for "
            f"{config.num_classes} classes"
        )
    return names


def schedule_of(described: Mapping[str, Any], source: Path) -> Schedule:
    """The schedule that the folder describes, else the linear one of the released models.

    Raises: SmidgenError for a schedule of an unknown kind.
    """
    scheduler = source / "scheduler" / "scheduler_config.json"
    if described.get("format") == FORMAT:
        fields: dict[str, Any] = dict(described.get("schedule") or {"kind": "linear"})
        kind = fields.pop("kind", None)
        try:
            if kind == "linear":
                return Schedule.linear(**fields)
        except (TypeError, ValueError) as error:
            raise SmidgenError(f"{source}/config.json: schedule: {error}") from error
        raise SmidgenError(f'{source}/config.json: schedule "{kind}"; expected linear')
    if scheduler.is_file():
        return schedule_from_diffusers(read_json(scheduler, Scheduler), scheduler)
    return Schedule.linear()


def build_dit(
    config: DiTConfig,
    state: Mapping[str, Tensor],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DiT:
    """A frozen DiT in evaluation mode; it holds these very tensors where nothing converts them.

    Raises: SmidgenError naming tensors that are not finite.
    """
    with torch.device("meta"):
        model = DiT(config)
    converted = {name: tensor.to(device=device, dtype=dtype) for name, tensor in state.items()}
    check_finite(converted, "the weights of this DiT")
    model.load_state_dict(converted, assign=True)
    return model.requires_grad_(False).eval()


def write_original_pt(model: DiT, path: str | Path) -> list[str]:
    """Writes the state dict as the released `.pt` files are; returns what will differ there."""
    write_pickle(model.state_dict(), Path(path), dataclasses.asdict(model.config))
    return _notes_on_shift(model.config, 0.0, "the original code")


def write_diffusers(
    model: DiT,
    folder: str | Path,
    *,
    codec: Codec | None = None,
    class_names: Sequence[str] = (),
    schedule: Schedule | None = None,
) -> list[str]:
    """Writes a diffusers pipeline folder; without a codec only transformer/ and scheduler/.

    DiTPipeline takes 1000 as the null label: a pipeline's table is padded to 1001 rows, the null
    row last, and the true number of classes recorded in transformer/config.json, as is the shift of
    training. Returns, and logs as a warning, what will differ there: diffusers computes the
    timestep frequencies with shift 1.

    Raises: SmidgenError for a feed-forward, positions or, in a pipeline, a number of classes that
        diffusers cannot express, or if the disk refuses.
    """
    folder, config = Path(folder), model.config
    ours: Mapping[str, Tensor] = model.state_dict()
    if codec is not None:
        ours = pad_classes(ours, PIPELINE_CLASSES)
    document = config_to_diffusers(config, None if codec is None else PIPELINE_CLASSES)
    if config.image_width is not None or not is_fixed_table(model.pos_embed):
        raise SmidgenError(
            "the position table is not the fixed one of a square, and diffusers would compute "
            "that; write the original format instead"
        )
    state = to_diffusers(ours, config.depth)
    # safetensors refuses tensors that share memory, as the repeated embedders do.
    apart = {name: t.clone() if ".norm1.emb." in name else t for name, t in state.items()}
    write_safetensors_file(apart, folder / "transformer" / DIFFUSERS_WEIGHTS)
    write_json(document, folder / "transformer" / "config.json")
    scheduler = schedule_to_diffusers(schedule or Schedule.linear())
    write_json(scheduler, folder / "scheduler" / "scheduler_config.json")
    notes = _notes_on_shift(config, DIFFUSERS_SHIFT, "diffusers")
    if codec is not None:
        save_codec(codec, folder / "vae")
        write_json(pipeline_index(class_names), folder / "model_index.json")
    return notes


def _read_diffusers(folder: Path) -> tuple[DiTConfig, dict[str, Tensor]]:
    document = read_json(folder / "config.json", DiffusersDiT)
    config = config_from_diffusers(document, folder / "config.json")
    num_rows = padded_classes(document, folder / "config.json")
    stored = config if num_rows is None else dataclasses.replace(config, num_classes=num_rows)
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state |= read_tensors(path)
    # Early versions of diffusers also stored the fixed table.
    state.pop("pos_embed.pos_embed", None)
    check_shapes(diffusers_shapes(stored), state, folder)
    # what is in 8 bit cannot be compared or put together with others
    state = {name: t.float() if t.element_size() == 1 else t for name, t in state.items()}
    ours = from_diffusers(state, config.depth, folder)
    return config, ours if num_rows is None else strip_classes(ours, config.num_classes)


def _config_of_file(state: Mapping[str, Tensor], path: Path, num_heads: int | None) -> DiTConfig:
    """By shapes; what they do not tell by the argument, the file's record or config.json beside."""
    record, beside = recorded(state), path.with_name("config.json")
    if not record and beside.is_file():
        fields = read_json(beside).get("dit")
        record = fields if isinstance(fields, dict) else {}
    try:
        known = fit(record, Recorded)
    except Unreadable as error:
        raise SmidgenError(f"{path}: what it records of itself: {error.reason}") from error
    config = infer_config(state, path, num_heads=num_heads or known.num_heads)
    try:
        return dataclasses.replace(
            config,
            frequency_shift=known.frequency_shift,
            image_size=known.image_size or config.image_size,
            image_width=known.image_width,
            spacing=known.spacing,
        )
    except ValueError as error:
        raise SmidgenError(f"{path}: what it records of itself: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a lone file records of its configuration and its shapes do not tell."""

    num_heads: int | None = None
    frequency_shift: float = 0.0
    image_size: int | None = None
    image_width: int | None = None
    spacing: tuple[float, float] = (1.0, 1.0)


def _notes_on_shift(config: DiTConfig, shift: float, reader: str) -> list[str]:
    if config.frequency_shift == shift:
        return []
    note = (
        f"{reader} computes the timestep frequencies with shift {shift:g}, this model was trained "
        f"with {config.frequency_shift:g}: its outputs there differ; docs/interop.md has the remedy"
    )
    logger.warning(note)
    return [note]
