"""Positions at another image size than a DiT's own: stretched, extended, kept in files."""

import dataclasses
import logging

import pytest
import torch

from smidgen.core.delta import Delta, Provenance
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.settings import check_values
from smidgen.models.chosen import BaseOptions
from smidgen.models.dit import position_table
from smidgen.models.dit_weights import read_dit, write_diffusers, write_original_pt
from smidgen.models.positions import check_positions, note_on_size, positions_at, size_and_positions
from smidgen.models.pretrained import load_base
from smidgen.models.sources import load_codec
from smidgen.sizes import ImageSize
from tests.models.conftest import TINY
from tests.tiny.networks import dit
from tests.tiny.own_folder import write_safetensors
from tests.tiny.pipelines import TINY_PIPELINES

OWN = ImageSize.of(8)  # pixels of the base below: 4 latent pixels, 2 x 2 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vae_folder):
    path = tmp_path_factory.mktemp("bases") / "base"
    write_safetensors(dit(TINY), path, codec=load_codec(vae_folder), class_names=tuple("abcde"))
    return path


def table(base, rows, columns):
    return base.denoiser.pos_embed[0].unflatten(0, (rows, columns))


def test_stretched_positions_are_those_of_half_the_coordinates_at_twice_the_size(folder, caplog):
    own = table(load_base(folder), 2, 2)
    base = load_base(folder, image_size=16, positions="stretch")
    found = table(base, 4, 4)
    # (i/2, j/2): every second one is a position of the base, the last is short of its next
    torch.testing.assert_close(found[::2, ::2], own, rtol=0, atol=0)
    assert torch.equal(base.denoiser.pos_embed, position_table(TINY.width, (4, 4), (0.5, 0.5)))
    assert caplog.records == []
    assert (base.positions, base.given["positions"]) == ("stretch", "stretch")
    assert base.fingerprint == load_base(folder).fingerprint
    # of half the size the base sees all of its image too
    squeezed = load_base(folder, image_size=4, positions="stretch")
    assert torch.equal(table(squeezed, 1, 1), own[:1, :1])
    assert squeezed.denoiser.config.spacing == (2.0, 2.0)


def test_each_side_of_an_image_that_is_no_square_covers_the_range(folder):
    base = load_base(folder, image_size="32x16", positions="stretch")
    assert base.latent_shape == (4, 8, 16)
    found = table(base, 4, 8)
    own = table(load_base(folder), 2, 2)
    torch.testing.assert_close(found[::2, ::4], own, rtol=0, atol=0)
    extended = table(load_base(folder, image_size="32x16"), 4, 8)
    assert torch.equal(extended[:2, :2], own)
    assert not torch.equal(extended, found)


def test_at_its_own_size_nothing_is_asked_for_and_nothing_said(folder, caplog):
    for positions in (None, "extend", "stretch"):
        for size in (None, 8):
            base = load_base(folder, image_size=size, positions=positions)
            assert (base.positions, "positions" in base.given) == (None, False)
            assert torch.equal(base.denoiser.pos_embed, position_table(TINY.width, (2, 2)))
    assert caplog.records == []


def test_extended_is_what_is_meant_unless_told_otherwise(folder, caplog):
    asked, silent = (load_base(folder, image_size=16, positions=p) for p in ("extend", None))
    assert torch.equal(asked.denoiser.pos_embed, silent.denoiser.pos_embed)
    # so that runs from before, whose recipes say nothing, go on
    assert (silent.positions, silent.given, asked.given) == ("extend", {}, {})
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_words_that_are_none_and_bases_without_such_positions_are_refused(tmp_path):
    with pytest.raises(UsageError, match='positions is "squash"; expected one of'):
        check_values({"base": "glyphs", "positions": "squash"}, BaseOptions, source="", kind="")
    pipeline = TINY_PIPELINES["sd3"].save(tmp_path / "sd3")
    with pytest.raises(UsageError, match="positions is for a DiT"):
        load_base(pipeline, positions="stretch")


@pytest.mark.parametrize("image_size", ["16", "16x8", "32x8"])
def test_a_file_keeps_stretched_positions_and_the_shape(folder, vae_folder, tmp_path, image_size):
    base = load_base(folder, image_size=image_size, positions="stretch")
    path = tmp_path / "stretched.pt"
    write_original_pt(base.denoiser, path)
    again = load_base(path, codec=vae_folder)
    assert again.denoiser.config == base.denoiser.config
    assert torch.equal(again.denoiser.pos_embed, base.denoiser.pos_embed)
    assert (again.image_size, again.positions) == (ImageSize.of(image_size), None)
    # back at the first size they are the base's own
    back = load_base(path, codec=vae_folder, image_size=8, positions="stretch")
    torch.testing.assert_close(
        back.denoiser.pos_embed, load_base(folder).denoiser.pos_embed, rtol=0, atol=0
    )
    with pytest.raises(SmidgenError, match="position table is not the fixed one of a square"):
        write_diffusers(base.denoiser, tmp_path / "theirs")


def test_a_grid_that_is_no_square_is_none_of_diffusers_even_with_as_many_tokens(folder, tmp_path):
    base = load_base(folder, image_size="32x8")  # 2 x 8 tokens, as many as 4 x 4
    with pytest.raises(SmidgenError, match="not the fixed one of a square"):
        write_diffusers(base.denoiser, tmp_path)


def test_a_record_that_makes_no_sense_is_refused(tmp_path):
    model = dit(TINY)
    broken = dataclasses.replace(TINY)
    object.__setattr__(broken, "spacing", (0.0, 1.0))
    model.config = broken
    write_original_pt(model, tmp_path / "base.pt")
    with pytest.raises(SmidgenError, match="what it records of itself: spacing is"):
        read_dit(tmp_path / "base.pt")


@pytest.mark.parametrize(
    ("used", "asked", "words"),
    [
        (None, None, None),
        ("8", None, None),
        ("16", None, "extended, not stretched"),
        ("4x16", "extend", "extended, not stretched"),
        ("4x8", None, "cut, not squeezed"),
        ("16", "stretch", None),
    ],
)
def test_the_note_says_what_is_not_stretched(used, asked, words):
    size = None if used is None else ImageSize.of(used)
    note = note_on_size("b", OWN, size, asked)
    assert note is None if words is None else words in str(note)
    assert note_on_size("b", None, size, asked) is None
    assert positions_at(OWN, size, asked) == (
        None if used in (None, "8") else "stretch" if asked == "stretch" else "extend"
    )


def of_size(size, positions):
    data = {"image_size": size, "positions": positions}
    provenance = Provenance(
        method="difffit",
        config={},
        host="dit",
        base="tiny",
        fingerprint="sketch1:none",
        classes=(),
        training={"data": {name: value for name, value in data.items() if value}},
    )
    return Delta({}, provenance)


def test_a_delta_brings_its_size_and_positions_where_they_are_not_given():
    options = BaseOptions(base="glyphs")
    assert options.as_trained(of_size("64x32", "stretch")) == dataclasses.replace(
        options, image_size=ImageSize(64, 32), positions="stretch"
    )
    given = BaseOptions(base="glyphs", image_size=ImageSize.of(48), positions="extend")
    assert given.as_trained(of_size(64, "stretch")) == given
    for silent in (None, of_size(64, None), of_size(None, None)):
        assert options.as_trained(silent) == options
        assert size_and_positions(silent) == (None, None)


def test_other_positions_than_those_of_the_training_are_refused_in_a_line(folder):
    delta = of_size(16, "stretch")
    check_positions(delta, load_base(folder))
    check_positions(delta, load_base(folder, image_size=12, positions="stretch"))
    check_positions(of_size(8, None), load_base(folder, image_size=16))
    with pytest.raises(
        UsageError, match=r'with positions "stretch", and base ".*" has positions "extend" at 16'
    ):
        check_positions(delta, load_base(folder, image_size=16))
