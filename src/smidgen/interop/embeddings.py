"""Textual inversion for other programs: one small file with the rows of a new word, for diffusers'
`load_textual_inversion` and ComfyUI. N rows, C channels of an embedding.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from smidgen.models.base import Base
from smidgen.models.files import read_json, write_safetensors_file
from smidgen.models.pipelines import INDEX

# (component of a pipeline, class of transformers) -> its name in a file of several encoders
KEYS = {
    ("text_encoder", "CLIPTextModel"): "clip_l",
    ("text_encoder", "CLIPTextModelWithProjection"): "clip_l",
    ("text_encoder_2", "CLIPTextModelWithProjection"): "clip_g",
    ("text_encoder_2", "T5EncoderModel"): "t5xxl",
    ("text_encoder_3", "T5EncoderModel"): "t5xxl",
}


def write_embeddings(delta: Delta, base: Base, output: Path) -> Path:
    """Write the rows (N, C) of the delta's new word: of one encoder under the word itself, of
    several under the names that ComfyUI has for them, where the word is the file's name.

    Raises: SmidgenError if the delta is anything but a new word, an encoder has no such name, or
        the disk refuses.
    """
    words = {edit.component: edit for edit in delta.edits.values() if isinstance(edit, Word)}
    if not words or len(words) < len(delta.edits):
        raise SmidgenError(
            f"a delta of {delta.provenance.method} is more than a new word, which is all that such "
            "a file holds; give one of textual-inversion alone"
        )
    if len(words) == 1:
        tensors = {word.token: _rows(word) for word in words.values()}
    else:
        tensors = {_key(base, component): _rows(word) for component, word in words.items()}
    write_safetensors_file(tensors, output)
    return output


def _rows(word: Word) -> Tensor:
    return word.rows.detach().cpu().contiguous()


def _key(base: Base, component: str) -> str:
    index = {} if base.source is None else read_json(base.source / INDEX)
    kind = index.get(component, (None, None))[1]
    if (component, kind) not in KEYS:
        raise SmidgenError(f"other programs have no name for the rows of {component}, a {kind}")
    return KEYS[component, kind]
