"""Attention maps, against the probabilities that diffusers' own processor works out."""

import pytest
import torch
from torch.nn import functional

from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.explanation.attention import (
    cross_attentions,
    probabilities,
    to_word,
    tokens_of,
    watching,
)
from smidgen.explanation.differences import Noised, predict
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from tests.tiny.deltas import lora
from tests.tiny.pipelines import TINY_PIPELINES

PROMPT = "a photo of a sks owl"


@pytest.fixture(scope="module", params=["sd", "pixart-alpha"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / request.param
    return load_base(str(TINY_PIPELINES[request.param].save(folder)))


def noised(base) -> Noised:
    latents = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    return Noised.of(base, latents, 2, seed=3)


def delta_of(base) -> Delta:
    return lora(base.denoiser, chosen=lambda one: one.role in ("cross.q", "cross.k"))


def of_diffusers(base, labels, delta, monkeypatch) -> list[torch.Tensor]:
    """The probabilities (B, H, N, L) of each cross-attention, in the order in which they run."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    found: list[torch.Tensor] = []
    own = Attention.get_attention_scores
    crossing = {base.denoiser.get_submodule(one.module) for one in cross_attentions(base.host)}

    def recorded(self, query, key, mask=None):
        scores = own(self, query, key, mask)
        if self in crossing:
            found.append(scores.unflatten(0, (-1, self.heads)))
        return scores

    monkeypatch.setattr(Attention, "get_attention_scores", recorded)
    for module in base.denoiser.modules():
        if isinstance(module, Attention):
            monkeypatch.setattr(module, "processor", AttnProcessor())
    with delta.attach(base.denoiser):
        predict(base, labels, 0, noised(base), 1)
    return found


def test_it_is_what_diffusers_works_out_with_the_delta(base, monkeypatch):
    delta, labels = delta_of(base), labels_of(base, None, (PROMPT[:10],))
    places = cross_attentions(base.host)
    with torch.no_grad(), delta.attach(base.denoiser), watching(base, places) as seen:
        predict(base, labels, 0, noised(base), 1)
        own = [
            probabilities(base.denoiser.get_submodule(one.module), seen[one.module])
            for one in places
        ]
        maps, shares = to_word(base, places, seen, [2, 3])
    with torch.no_grad():
        plain = of_diffusers(base, labels, delta, monkeypatch)
    by_order = sorted(range(len(places)), key=lambda index: places[index].block)
    assert len(plain) == len(places) > 0
    for index, expected in zip(by_order, plain, strict=True):
        torch.testing.assert_close(own[index], expected)
    _, height, width = base.latent_shape
    squares = [
        scores[..., 2:4].sum(-1).mean(1).unflatten(1, (int(scores.shape[2] ** 0.5), -1))
        for scores in plain
    ]
    expected_maps = [
        functional.interpolate(square[:, None], (height, width), mode="bilinear")[:, 0]
        for square in squares
    ]
    torch.testing.assert_close(maps, torch.stack(expected_maps).mean(0))
    assert shares.shape == (len(places),)
    assert maps.shape == (2, height, width)


def test_the_tokens_of_a_word_are_found_by_the_tokenizer(base):
    with base.conditioner.open() as reader:
        tokenizer = reader.encoders[0].tokenizer
        tokens = tokens_of(reader, PROMPT, "sks")
        ids = tokenizer(PROMPT)["input_ids"]
        read = tokenizer.decode([ids[place] for place in tokens]).replace(" ", "")
        assert read == "sks"
        with pytest.raises(UsageError, match='"cat" is no word of the prompt'):
            tokens_of(reader, PROMPT, "cat")
