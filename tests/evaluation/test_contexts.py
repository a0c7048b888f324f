"""The prompts of a personalisation: made of the instance prompt, and of other things."""

import pytest

from smidgen.errors import SmidgenError
from smidgen.evaluation.contexts import (
    GLYPHS,
    PHOTOGRAPHS,
    Subject,
    placed,
    prompts_of,
    subject_of,
)
from smidgen.evaluation.glyph_colours import GROUNDS, INKS, asked_colours

OWL = {
    "token": "sks",
    "class_name": "owl",
    "instance_prompt": "a picture of a sks owl",
    "class_prompt": "a picture of an owl",
    "class_images": 20,
}


@pytest.mark.parametrize(
    ("prompt", "word", "behind", "expected"),
    [
        ("a picture of a sks owl", "", "", "a picture of a sks owl"),
        ("a picture of a sks owl", "small", " on grey", "a small picture of a sks owl on grey"),
        ("an image of sks", "tilted", "", "a tilted image of sks"),
        ("photo of sks", "tilted", "", "tilted photo of sks"),
        ("about a sks owl", "small", "", "small about a sks owl"),
    ],
)
def test_a_context_is_a_word_behind_the_article_and_what_follows(prompt, word, behind, expected):
    assert placed(prompt, word, behind) == expected


@pytest.mark.parametrize("world", [GLYPHS, PHOTOGRAPHS])
def test_what_is_compared_with_is_what_is_drawn_without_the_token(world):
    prompts = prompts_of(subject_of(OWL), world)
    assert prompts.drawn[0] == OWL["instance_prompt"]
    assert len(set(prompts.drawn)) == len(prompts.drawn) == len(prompts.said) >= 10
    for drawn, said in zip(prompts.drawn, prompts.said, strict=True):
        assert drawn.replace("a sks owl", "an owl") == said
    assert prompts.others[0] == OWL["class_prompt"]
    assert len(set(prompts.others)) == len(prompts.others) >= 6
    assert not any("sks" in prompt for prompt in prompts.others)


def test_contexts_of_glyphs_have_every_ink_and_ground_alike():
    asked = [asked_colours(prompt) for prompt in prompts_of(subject_of(OWL), GLYPHS).drawn]
    assert asked[0] is None
    inks, grounds = zip(*asked[1:], strict=True)
    assert {inks.count(ink) for ink in range(len(INKS))} == {2}
    assert {grounds.count(ground) for ground in range(len(GROUNDS))} == {3}


def test_other_things_of_the_subjects_class_are_left_out():
    cat = Subject(
        token="sks",
        class_name="cat",
        instance_prompt="a picture of a sks cat",
        class_prompt="a picture of a cat",
    )
    owl, others = (prompts_of(one, GLYPHS).others for one in (subject_of(OWL), cat))
    assert set(owl) - set(others) == {"a picture of an owl", "a picture of a cat in navy on white"}


@pytest.mark.parametrize("training", [None, {}, OWL | {"token": 5}, "owl"])
def test_a_delta_that_names_no_subject_is_refused(training):
    with pytest.raises(SmidgenError, match="what subject it is of"):
        subject_of(training)
