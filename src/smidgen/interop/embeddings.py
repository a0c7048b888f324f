"""Textual inversion of and for other programs: one small file with the rows of a new word, as
diffusers' `load_textual_inversion`, A1111 and ComfyUI have it. N rows, C channels of an embedding.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Edit
from smidgen.core.weights import checked, open_safetensors
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from smidgen.interop.lora_keys import parse_key
from smidgen.methods.textual_inversion import check_token, new_word
from smidgen.models.base import Base
from smidgen.models.files import read_json, read_tensors, write_safetensors_file
from smidgen.models.pipelines import INDEX

# (component of a pipeline, class of transformers) -> its name in a file of several encoders
KEYS = {
    ("text_encoder", "CLIPTextModel"): "clip_l",
    ("text_encoder", "CLIPTextModelWithProjection"): "clip_l",
    ("text_encoder_2", "CLIPTextModelWithProjection"): "clip_g",
    ("text_encoder_2", "T5EncoderModel"): "t5xxl",
    ("text_encoder_3", "T5EncoderModel"): "t5xxl",
}
UNNAMED = "emb_params"  # of A1111's files of one encoder, where the word is the file's name


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


def is_embeddings(path: Path) -> bool:
    """Whether a file holds rows of a word and no more, by the names and shapes of its tensors."""
    if not path.is_file():
        return False
    try:
        with open_safetensors(path) as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SmidgenError:
        return False
    of_words = len(shapes) == 1 or set(shapes) <= set(KEYS.values())
    rows = all(len(shape) in (1, 2) and parse_key(name) is None for name, shape in shapes.items())
    return bool(shapes) and of_words and rows


def read_embeddings(path: Path, base: Base) -> Delta:
    """The delta of the word in such a file: it has the tensor's name, or the file's where that is
    the name of an encoder.

    Raises: SmidgenError if the file is damaged or is for other text encoders; UsageError for a word
        that the base knows already.
    """
    tensors = checked(read_tensors(path), path)
    if base.conditioner is None:
        raise SmidgenError(f'base "{base.name}" reads no prompts, and {path} holds a word of them')
    with base.conditioner.open() as reader:
        encoders = reader.encoders
        keys = {one.component: _key(base, one.component) for one in encoders}
        (name, *_) = tensors
        token = path.stem if name in (*KEYS.values(), UNNAMED) else name
        if len(encoders) == 1 and len(tensors) == 1:
            tensors = dict.fromkeys(keys.values(), tensors[name])
        if set(tensors) != set(keys.values()):
            raise SmidgenError(
                f'{path} has rows for {", ".join(tensors)}, and base "{base.name}" reads prompts '
                f"with {', '.join(keys.values())}; give the file of a word for this model"
            )
        check_token(token)
        edits: dict[str, Edit] = {}
        for one in encoders:
            rows = tensors[keys[one.component]].float()
            edits[f"{one.component}.token"] = new_word(one, token, rows.view(-1, rows.shape[-1]))
        provenance = Provenance(
            method="textual-inversion",
            config={},
            host=base.host.family,
            base=base.name,
            fingerprint=base.fingerprint,
            classes=(),
            training={"read_from": path.name},
            components={one.component: one.fingerprint for one in encoders},
        )
    return Delta(edits, provenance)


def _rows(word: Word) -> Tensor:
    return word.rows.detach().cpu().contiguous()


def _key(base: Base, component: str) -> str:
    index = {} if base.source is None else read_json(base.source / INDEX)
    kind = index.get(component, (None, None))[1]
    if (component, kind) not in KEYS:
        raise SmidgenError(f"other programs have no name for the rows of {component}, a {kind}")
    return KEYS[component, kind]
