"""Vision transformers from a folder: DINOv2 and CLIP. The only importer of transformers.

transformers is imported when a network is loaded, no earlier: that takes seconds. What pixels they
want is not known here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from smidgen.core.weights import check_finite
from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line, sha256_of
from smidgen.models.files import read_json
from smidgen.models.schemas import check_sizes


def load_dinov2(folder: Path, image_size: int, device: torch.device | str = "cpu") -> nn.Module:
    """The frozen Dinov2Model of a folder, its positions brought to `image_size` pixels.

    Raises: SmidgenError if the folder does not hold such a model.
    """
    with _transformers():
        from transformers.models.dinov2 import Dinov2Model

        network: Any = _load(Dinov2Model, folder)
    grid = image_size // network.config.patch_size
    positions = network.embeddings.position_embeddings
    network.embeddings.position_embeddings = nn.Parameter(
        interpolate_positions(positions.detach(), grid), requires_grad=False
    )
    return network.to(device)


def interpolate_positions(positions: Float[Tensor, "1 P D"], grid: int) -> Float[Tensor, "1 Q D"]:
    """Position embeddings at `grid` x `grid` patches, as the released DINOv2.

    P = 1 + M * M and Q = 1 + grid * grid, the class token's first. The released scale is
    (grid + 0.1) / M, which moves every sample by a part of a patch; transformers interpolates
    without that offset, and its features are others than the published ones.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, M, M)
    scale = (grid + 0.1) / side
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def load_clip(folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The frozen CLIPModel of a folder.

    Raises: SmidgenError if the folder does not hold such a model.
    """
    with _transformers():
        from transformers.models.clip import CLIPModel

        return _load(CLIPModel, folder).to(device)


def load_clip_tokenizer(
    folder: Path, max_tokens: int
) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
    """A function from texts to `input_ids` and `attention_mask` (N, T), at most `max_tokens` long.

    Raises: SmidgenError if the folder holds no tokenizer of CLIP.
    """
    with _transformers():
        from transformers.models.clip import CLIPTokenizer

        wanted = ("tokenizer.json", "vocab.json")
        if not any((folder / name).is_file() for name in wanted):
            raise SmidgenError(f"no tokenizer in {folder}: expected {' or '.join(wanted)}")
        try:
            tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # a damaged file gives whatever the parser raises
            raise SmidgenError(
                f"{folder} holds no tokenizer that transformers can load: {in_one_line(error)}"
            ) from error

    def tokenize(texts: Sequence[str]) -> Mapping[str, Tensor]:
        tokens = tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    return tokenize


def known_words(folder: Path) -> tuple[str, ...]:
    """The words that are one token of the CLIP tokenizer in a folder's vocab.json.

    Raises: SmidgenError if there is none.
    """
    ending = "</w>"
    tokens = read_json(folder / "vocab.json")
    return tuple(token.removesuffix(ending) for token in tokens if token.endswith(ending))


def hash_weights(folder: Path) -> str:
    """The SHA-256 of a model's safetensors: of the file, or of names and hashes where it is split.

    Raises: SmidgenError if there is none.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise SmidgenError(f"no .safetensors in {folder}; pickled weights are not read")
    hashes = [sha256_of(path) for path in paths]
    if len(paths) == 1:
        return hashes[0]
    lines = (f"{path.name} {value}\n" for path, value in zip(paths, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _load(kind: Any, folder: Path) -> Any:
    """A network of that class, float32, with every parameter from the folder's safetensors."""
    config, expected = read_json(folder / "config.json"), kind.config_class.model_type
    check_sizes(config, folder / "config.json")
    found = config.get("model_type")
    if found != expected:  # else transformers would build one of its default size first
        raise SmidgenError(f'{folder} holds a model of type "{found}"; expected "{expected}"')
    try:
        network, report = kind.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file gives whatever the parser raises
        raise SmidgenError(
            f"{folder} holds no {kind.__name__} that can be loaded: {in_one_line(error)}"
        ) from error
    # transformers would leave these at random values.
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [f"{entry[0]} has another shape" for entry in sorted(report["mismatched_keys"])]
    if wrong:
        raise SmidgenError(f"{folder} is no {kind.__name__}: {'; '.join(wrong[:3])}")
    check_finite(network.state_dict(), folder)
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def _transformers() -> Iterator[None]:
    """Inside, transformers may be imported, and says nothing."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
