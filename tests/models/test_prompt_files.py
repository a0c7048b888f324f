"""What a pipeline's tokenizers say of a prompt's length, and what its encoders are known by."""

import dataclasses

import pytest

from smidgen.models.known import prompt_files
from smidgen.models.pretrained import load_base
from tests.tiny.pipelines import TINY_PIPELINES


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {name: TINY_PIPELINES[name].save(root / name) for name in ("sd", "sd3", "flux", "sana")}


@pytest.mark.parametrize(
    ("name", "most", "ends"),
    [
        ("sd", 77, 2),
        ("sd3", 77, 2),  # without its T5
        ("flux", 512, 1),  # of its T5, which reads on where its CLIP has ended
        ("sana", 300, 0),
    ],
)
def test_a_prompt_is_cut_behind_the_last_token_that_an_encoder_reads(folders, name, most, ends):
    """The tiny tokenizers make one token of a letter and have `ends` of their own."""
    files = prompt_files(folders[name])
    assert files is not None
    longest = "a" * (most - ends)
    assert files.cut([longest, "a", ""]) == {}
    assert files.cut([longest, f"{longest}a"]) == {f"{longest}a": most}


def test_encoders_are_known_by_the_content_of_their_files(folders):
    one, other = (prompt_files(folders[name]) for name in ("sd", "sd3"))
    assert one is not None
    assert other is not None
    assert one.fingerprint != other.fingerprint
    path = folders["sd"] / "tokenizer" / "tokenizer_config.json"
    before, text = one.fingerprint, path.read_text()
    try:
        path.write_text(text + " ")
        assert dataclasses.replace(one).fingerprint != before
    finally:
        path.write_text(text)
    assert dataclasses.replace(one).fingerprint == before


def test_a_base_and_its_name_have_the_same_files(folders):
    conditioner = load_base(folders["sd"]).conditioner
    assert conditioner is not None
    assert conditioner.files == prompt_files(folders["sd"])
    assert prompt_files("glyphs") is None


def test_a_word_is_known_that_is_one_of_the_frequent_entries_of_a_tokenizer(folders, monkeypatch):
    """The tiny vocabulary has the letters alone, as a word the letter `a` is its 26th entry."""
    files = prompt_files(folders["sd"])
    assert files is not None
    assert files.knows("a")
    assert not files.knows("ab")
    monkeypatch.setattr("smidgen.models.prompt_files.MEANINGFUL", 26)
    assert not files.knows("a")
    monkeypatch.undo()
    monkeypatch.setattr("smidgen.models.prompt_files.MEANINGLESS", ("a",))
    assert not files.knows("a")
    assert files.knows("b")
