"""Schemas of the configurations in model folders, ours and those of diffusers: the types and limits
of all values that are read, checked before any is used. What is not named here is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from smidgen.errors import SmidgenError

Word = Annotated[str, Meta(max_length=100, pattern=r"^[\w.,:/ +-]*\Z")]  # may stand in a message
FileName = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\Z")]
Count = Annotated[int, Meta(ge=1, le=2**24)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
Share = Annotated[float, Meta(ge=1e-9, lt=1)]
Levels = Annotated[list[Count], Meta(min_length=1, max_length=16)]
Statistics = Annotated[list[Number], Meta(max_length=4096)]
Spread = Annotated[list[Positive], Meta(max_length=4096)]

MOST_LAYERS = 1024  # of one kind, in any network
MOST_SIDE = 4096  # of what a network was trained on, in latent pixels
MOST_SIZE = 2**24  # of anything else, such as a vocabulary


class LinearSchedule(TypedDict, total=False):
    """`schedule` in our own config.json."""

    kind: Word
    num_steps: Annotated[int, Meta(ge=1, le=100_000)]
    beta_start: Share
    beta_end: Share


class Folder(TypedDict, total=False):
    """What says of a folder what it is: our config.json, a network's, or model_index.json."""

    _class_name: Word | None
    format: Word
    class_names: list[str]
    schedule: LinearSchedule | None
    _class_names: list[str]
    id2label: dict[str, str]
    is_distilled: bool


class DiffusersDiT(TypedDict, total=False):
    """transformer/config.json of a DiT."""

    _class_name: Word
    norm_type: Word
    activation_fn: Word
    attention_bias: bool
    norm_elementwise_affine: bool
    in_channels: Count
    out_channels: Count | None
    num_attention_heads: Count
    attention_head_dim: Count
    num_layers: Count
    sample_size: Count
    patch_size: Count
    num_embeds_ada_norm: Count | None
    _num_classes: Count
    _frequency_shift: Number


class Scheduler(TypedDict, total=False):
    """scheduler_config.json."""

    _class_name: Word
    prediction_type: Word
    beta_schedule: Word
    trained_betas: Annotated[list[Share], Meta(min_length=1, max_length=100_000)] | None
    num_train_timesteps: Annotated[int, Meta(ge=1, le=100_000)]
    beta_start: Share
    beta_end: Share
    rescale_betas_zero_snr: bool | None
    use_flow_sigmas: bool | None
    flow_shift: Positive | None
    shift: Positive
    use_dynamic_shifting: bool | None
    shift_terminal: Share | None
    base_image_seq_len: Count
    max_image_seq_len: Count
    base_shift: Annotated[float, Meta(ge=-20, le=20)]
    max_shift: Annotated[float, Meta(ge=-20, le=20)]
    time_shift_type: Word


class Autoencoder(TypedDict, total=False):
    """vae/config.json."""

    _class_name: Word
    in_channels: Count
    input_channels: Count
    block_out_channels: Levels
    encoder_block_out_channels: Levels
    temperal_downsample: Annotated[list[bool], Meta(max_length=16)]
    latent_channels: Count
    z_dim: Count
    scaling_factor: Positive | None
    shift_factor: Number | None
    latents_mean: Statistics | None
    latents_std: Spread | None
    batch_norm_eps: Positive


class Shards(TypedDict):
    """The index of weights in several files."""

    weight_map: Annotated[dict[str, FileName], Meta(min_length=1)]


def check_sizes(config: Mapping[str, Any], source: Path) -> None:
    """Before a library builds a network as its configuration says, in time and memory that go by
    these numbers.

    Raises: SmidgenError for a number of layers or a size beyond all models.
    """
    entries = list(config.items())
    for key, value in entries:  # which grows by those of inner configurations
        if isinstance(value, dict):
            entries += value.items()
        most = MOST_SIZE
        if {"layers", "blocks"} & set(key.split("_")):
            most = MOST_LAYERS
        elif key in ("sample_size", "pos_embed_max_size"):
            most = MOST_SIDE
        parts = value if isinstance(value, list) else [value]
        for number in parts:
            if isinstance(number, int) and abs(number) > most:
                raise SmidgenError(
                    f"{source}: {key[:100]!r} is {str(number)[:20]}; expected at most {most:,}"
                )
        if len(parts) > MOST_LAYERS:
            raise SmidgenError(f"{source}: {key[:100]!r} has {len(parts):,} entries")
