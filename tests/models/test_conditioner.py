"""Prompts to conditions: one reading each, padding by the mask, and which label is whose."""

import pytest
import torch

from smidgen.errors import SmidgenError
from smidgen.hosts.family import Pipeline
from smidgen.models.conditioner import Conditioner, labels_alone
from smidgen.models.prompt_files import PromptFiles
from smidgen.sizes import ImageSize

SIZE = ImageSize.of(64)


def by_letters(pipeline, prompts, size):
    """A text of one token a letter, whose value is the letter's code."""
    (prompt,) = prompts
    pipeline.append((prompt, size.plain))
    codes = torch.tensor([[float(ord(letter)) for letter in prompt or " "]])
    return {"text": codes[..., None], "mask": torch.ones_like(codes, dtype=torch.long)}


def test_each_prompt_is_read_once_and_short_ones_are_filled_up_behind_their_mask():
    asked = []
    conditioner = Conditioner(lambda: asked, by_letters, SIZE)
    found = conditioner.encode(["abc", "z", "abc"])
    assert found["text"][:, :, 0].tolist() == [[97, 98, 99], [122, 0, 0], [97, 98, 99]]
    assert found["mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    conditioner.encode(["z", "y"])
    assert asked == [("abc", 64), ("z", 64), ("y", 64)]


def test_label_i_is_the_condition_of_prompt_i():
    conditioner = Conditioner(lambda: [], by_letters, SIZE)
    conditions = conditioner.conditions(("a", "b", ""), torch.device("cpu"), torch.bfloat16)
    found = conditions(torch.tensor([2, 1, 1, 0]))
    assert found["text"].flatten().tolist() == [32, 98, 98, 97]
    assert found["text"].dtype == torch.bfloat16
    assert found["mask"].dtype == torch.long
    labels = torch.tensor([3, 1])
    assert labels_alone(labels)["labels"] is labels


def test_texts_that_cannot_be_one_batch_are_refused():
    def without_mask(pipeline, prompts, size):
        return {"text": by_letters([], prompts, size)["text"]}

    conditioner = Conditioner(lambda: None, without_mask, SIZE)
    with pytest.raises(SmidgenError, match="texts of 1 to 2 tokens without a mask"):
        conditioner.encode(["a", "bc"])
    with pytest.raises(SmidgenError, match="no prompts"):
        conditioner.encode([])


def test_encoders_that_fail_on_a_prompt_are_told_in_a_line():
    def broken(pipeline, prompts, size):
        raise OverflowError("int too big to convert\nwhile processing")

    with pytest.raises(SmidgenError, match='fail on "a fox"') as caught:
        Conditioner(lambda: [], broken, SIZE).encode(["a fox"])
    assert "\n" not in str(caught.value)


def test_conditions_that_are_not_finite_are_refused_and_not_kept():
    """As a T5 in float16 gives, whose activations leave its range."""

    def overflowing(pipeline, prompts, size):
        return {"text": torch.full((1, 1, 2), float("inf"))}

    conditioner = Conditioner(lambda: [], overflowing, SIZE)
    for _ in range(2):
        with pytest.raises(SmidgenError, match=r'of "a fox": not finite .*: text; load .* bf16'):
            conditioner.encode(["a fox"])


def test_texts_of_different_lengths_are_filled_up_to_the_longest_of_the_run(tmp_path):
    index, none = {"_class_name": "Letters"}, tmp_path / "none"
    files = PromptFiles(source=none, index=index, pipeline=Pipeline(), network="Letters")
    conditioner = Conditioner(lambda: [], by_letters, SIZE, files)
    reported = []
    prompts = ("abc", "z", "")
    conditioner.fill(prompts, tmp_path, torch.bfloat16, lambda *done: reported.append(done))
    assert reported == [(1, 3), (2, 3), (3, 3)]
    conditions = conditioner.stored(prompts, tmp_path, torch.device("cpu"), torch.bfloat16)
    found = conditions(torch.tensor([1, 2]))
    assert found["text"][:, :, 0].tolist() == [[122, 0, 0], [32, 0, 0]]
    assert found["text"].dtype == torch.bfloat16
    assert found["mask"].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_store_is_of_one_precision_and_image_size(tmp_path):
    asked = []
    files = PromptFiles(
        source=tmp_path / "none", index={"_class_name": "x"}, pipeline=Pipeline(), network="x"
    )
    for side, dtype in ((64, torch.float32), (32, torch.float32), (64, torch.bfloat16)) * 2:
        Conditioner(lambda: asked, by_letters, ImageSize.of(side), files).fill(
            ("a",), tmp_path, dtype
        )
    assert asked == [("a", 64), ("a", 32), ("a", 64)]


class Encoders(list):
    """What a reader finds to close: no encoders, and who was asked."""


def test_encoders_that_are_kept_are_loaded_once_and_the_oldest_texts_go(monkeypatch):
    loads = []

    def load():
        loads.append(Encoders())
        return loads[-1]

    monkeypatch.setattr("smidgen.models.conditioner.KEPT_TEXTS", 2)
    conditioner = Conditioner(load, by_letters, SIZE)
    with conditioner.keeping():
        for prompt in ("a", "b", "a", "c", "a", "b"):
            conditioner.encode([prompt])
        assert len(loads) == 1
        assert [asked for asked, _ in loads[0]] == ["a", "b", "c", "b"]
    conditioner.encode(["a"])
    assert len(loads) == 1  # it is known still
    assert len(conditioner.encode(["x", "y", "z"])["text"]) == 3  # more at once than are kept
    assert len(loads) == 2
