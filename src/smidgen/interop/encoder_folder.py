"""Folding into a text encoder: its folder and, for a new word, its tokenizer's, as transformers
writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from smidgen.core.delta import Delta
from smidgen.core.fingerprint import fingerprint
from smidgen.core.fold import IntoTable, fold
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from smidgen.models.components import load_part, save_part
from smidgen.models.files import read_json
from smidgen.models.pipelines import INDEX, pipeline_of
from smidgen.models.reader import learn_word


def fold_encoder(delta: Delta, pipeline: Path, component: str, output: Path) -> None:
    """Write the text encoder `component` of the pipeline in this folder with `delta` folded in, to
    the folder of its name in `output`; and its tokenizer, if it learns a word. The encoder stays in
    the precision of its files.

    Raises: SmidgenError if the pipeline has no such encoder or another one, the delta does not fold
        or the disk refuses.
    """
    index = read_json(pipeline / INDEX)
    described = pipeline_of(index, pipeline)[1]
    tokenizers = dict(zip(described.encoders, described.tokenizers, strict=True))
    if component not in tokenizers or not (pipeline / component).is_dir():
        raise SmidgenError(
            f"the delta has edits in {component}, which {pipeline} has not as a text encoder; give "
            "the base that it was made for"
        )
    edits = [edit for edit in delta.edits.values() if edit.component == component]
    words = [edit for edit in edits if isinstance(edit, Word)]
    network = load_part(pipeline / component, *index[component])
    delta.check_component(component, fingerprint(network.state_dict()))
    targets = {word.sites[-1]: IntoTable(f"{word.sites[-1].module}.weight") for word in words}
    before = network.state_dict()
    folded = fold(delta, before, targets, component)
    _resize(network, max((word.num_new_rows for word in words), default=0))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if folded[name] is not before[name]:
                tensor.copy_(folded[name])
    save_part(network, output / component)
    if words:
        name = tokenizers[component]
        tokenizer = load_part(pipeline / name, *index[name])
        for word in words:
            learn_word(getattr(tokenizer, "tokenizer", tokenizer), word)
        save_part(tokenizer, output / name)


def _resize(network: Any, num_rows: int) -> None:
    """Room for so many rows, at least those that there are; their values come later."""
    if num_rows > network.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng():  # new rows are drawn
            network.resize_token_embeddings(num_rows, mean_resizing=False)
