"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): all that is trained is the row of a new
word in the table of each text encoder. The denoiser stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smidgen.core.edits import Edit
from smidgen.core.sites import Site
from smidgen.core.word import MOST_CHARACTERS, Word, names_of
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.names import excerpt
from smidgen.methods.configs import TextualInversionConfig
from smidgen.methods.method import Encoder, Tunable


def build(
    base: Tunable, config: TextualInversionConfig, generator: torch.Generator
) -> dict[str, Edit]:
    """Nothing: no edit acts in the denoiser."""
    return {}


def build_in_encoders(
    encoders: Sequence[Encoder],
    config: TextualInversionConfig,
    generator: torch.Generator,
    token: str | None,
) -> dict[str, Word]:
    """The rows of `token` in the table of each encoder, equal to those of the initial word at the
    start.

    Raises: UsageError without a token or an initial word, or for a token that a tokenizer knows
        already; SmidgenError for an encoder without a plain table.
    """
    if token is None:
        raise UsageError("textual-inversion trains a new word: give it as token (--token)")
    check_token(token)
    if config.init_word is None:
        raise UsageError(
            "textual-inversion starts as a word that the base knows: give one as init_word "
            "(--init-word), such as the name of what is shown"
        )
    return {f"{one.component}.token": _word(one, config, token) for one in encoders}


def _word(encoder: Encoder, config: TextualInversionConfig, token: str) -> Word:
    assert config.init_word is not None, "checked above"
    _, table = _table(encoder)
    ids = _ids(encoder.tokenizer, config.init_word)
    old = table.weight.detach().to(torch.promote_types(table.weight.dtype, torch.float32))
    row = old.new_empty(old.shape[1]) if old.is_meta else old[ids].mean(0)
    return new_word(encoder, token, row.expand(config.num_vectors, -1))


def check_token(token: str) -> None:
    """Raises: UsageError for what is not one word."""
    if not token or token.split() != [token] or len(token) > MOST_CHARACTERS:
        raise UsageError(
            f'token is "{excerpt(token)}"; expected one word of up to {MOST_CHARACTERS} characters'
        )


def new_word(encoder: Encoder, token: str, rows: Float[Tensor, "N C"]) -> Word:
    """The edit that gives an encoder these rows for a token that its tokenizer lacks.

    Raises: UsageError for one that it knows; SmidgenError for rows of another width, or an encoder
        without a plain table.
    """
    _check_new(encoder.tokenizer, names_of(token, len(rows)))
    name, table = _table(encoder)
    if rows.shape[1] != table.embedding_dim:
        raise SmidgenError(
            f'the rows of "{excerpt(token)}" have {rows.shape[1]} numbers, those of the '
            f"{encoder.component} of this base {table.embedding_dim}; give a word for this model"
        )
    first = len(encoder.tokenizer)
    word = Word(Site(name, "in"), Site(name), token, first, table.num_embeddings, rows)
    word.component = encoder.component
    return word


def _table(encoder: Encoder) -> tuple[str, nn.Embedding]:
    """The table in which the encoder looks up tokens, and its name."""
    network: Any = encoder.network
    found = network.get_input_embeddings()
    names = [name for name, module in network.named_modules() if module is found]
    if type(found) is not nn.Embedding or not names:
        raise SmidgenError(
            f"the {encoder.component} of this base, a {type(network).__name__}, looks up tokens in "
            f"a {type(found).__name__}; textual-inversion needs a plain table"
        )
    return names[0], found


def _check_new(tokenizer: Any, names: Sequence[str]) -> None:
    """Raises: UsageError for a word that is one token already."""
    vocabulary = tokenizer.get_vocab()
    for name in names:
        pieces = tokenizer.tokenize(name)
        if name in vocabulary or (len(pieces) == 1 and pieces[0] != tokenizer.unk_token):
            raise UsageError(
                f'token "{name}" is a word that the base knows already; give a new one, such as '
                f'"<{name.strip("<>")}-1>"'
            )


def _ids(tokenizer: Any, word: str) -> Tensor:
    """The tokens of the initial word."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise UsageError(
            f'init_word "{excerpt(word)}" is none that the base can read; give another'
        )
    return torch.tensor(ids)
