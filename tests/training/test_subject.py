"""Which settings make a personalisation, what they mean, and which are refused."""

from pathlib import Path

import pytest

from smidgen.errors import UsageError
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.subject import check_folders, has_word, subject_prompts, without_word

OWL = {"task": "dreambooth", "token": "sks", "class_name": "owl"}


def config(**settings) -> RunConfig:
    training = {name: settings.pop(name) for name in ("prompt", "prior_weight") if name in settings}
    places = {"data": Path("photos"), "output": Path("run")}
    return RunConfig(**places | OWL | settings, training=TrainingConfig(**training))


@pytest.mark.parametrize(
    ("settings", "instance", "of_class"),
    [
        ({}, "a photo of sks owl", "a photo of a owl"),
        ({"prompt": "a drawing of an {class}"}, "a drawing of an sks owl", "a drawing of an owl"),
        ({"instance_prompt": "my {token} {class} now"}, "my sks owl now", "my owl now"),
        ({"instance_prompt": "art of sks, an {class}"}, "art of sks, an owl", "art of , an owl"),
        ({"instance_prompt": "{token}", "prompt": "an {class}"}, "sks", "an owl"),
    ],
)
def test_what_is_not_given_is_made_of_what_is(settings, instance, of_class):
    prompts = subject_prompts(config(**settings))
    assert (prompts.instance, prompts.of_class) == (instance, of_class)


def test_a_token_counts_as_a_word_of_its_own():
    assert has_word("an SKS-owl", "sks")
    assert not has_word("a photo of asks", "sks")
    assert without_word("sks the  sks owl of sksland", "sks") == "the owl of sksland"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token": None}, "token is None; task dreambooth expects one word"),
        ({"token": "two words"}, "token is 'two words'; task dreambooth expects one word"),
        ({"class_name": None}, "class_name is None; task dreambooth expects"),
        ({"class_name": " "}, "class_name is ' '; task dreambooth expects"),
        ({"token": "Owl"}, 'token "Owl" is a word of class_name "owl"'),
        ({"instance_prompt": "an {class}"}, r'"an {class}"; expected text with {token} in it'),
        ({"prompt": "an sks {class}"}, 'prompt of the class is "an sks owl", with the token in it'),
        ({"class_images": 0}, "class_images is 0; expected an integer of at least 1"),
        ({"class_guidance": -1.0}, "class_guidance is -1.0; expected a finite number"),
        ({"prior_weight": -1.0}, "prior_weight is -1.0; expected a finite number"),
        ({"prior_weight": 0.0, "class_images": 9}, "class_images is of no use where prior_weight"),
        ({"prior_weight": 0.0, "class_data": Path("owls")}, "class_data is of no use where prior"),
        ({"class_data": Path("owls"), "class_images": 9}, "class_images is of what the base draws"),
        ({"class_data": Path("owls"), "class_guidance": 2.0}, "class_guidance is of what the base"),
        ({"task": "dream"}, 'task is "dream"; expected one of: fine-tune, dreambooth'),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(settings, message):
    with pytest.raises(UsageError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"token": "sks"},
        {"class_name": "owl"},
        {"instance_prompt": "{token}"},
        {"class_data": Path("owls")},
        {"class_images": 3},
        {"class_guidance": 3.0},
        {"prior_weight": 1.0},
    ],
)
def test_settings_of_a_subject_are_of_no_use_without_one(settings):
    (name,) = settings
    with pytest.raises(UsageError, match=f'{name} is of no use to task "fine-tune"'):
        config(task="fine-tune", **dict.fromkeys(OWL.keys() - {"task"}) | settings)


def test_defaults_are_those_of_the_task():
    plain = RunConfig(data=Path("photos"), output=Path("run")).resolved()
    assert (plain.training.label_dropout, plain.training.prior_weight) == (0.1, None)
    assert (plain.class_images, plain.training.rows) == (None, 64)
    subject = config().resolved()
    assert (subject.training.label_dropout, subject.training.prior_weight) == (0.0, 1.0)
    assert (subject.class_images, subject.training.rows) == (200, 128)
    assert config(class_data=Path("owls")).resolved().class_images is None
    alone = config(prior_weight=0.0).resolved()
    assert (alone.class_images, alone.training.rows) == (None, 64)


@pytest.mark.parametrize("class_data", ["photos", "photos/owls", "."])
def test_images_of_the_class_lie_apart_from_those_of_the_subject(class_data, tmp_path):
    of_class = tmp_path / class_data
    with pytest.raises(UsageError, match="are one folder, or one lies in the other"):
        check_folders(config(data=tmp_path / "photos", class_data=of_class))


@pytest.mark.parametrize("place", ["output", "cache_dir"])
def test_nothing_is_written_to_images(place, tmp_path):
    folders = {"data": tmp_path / "photos", "class_data": tmp_path / "owls"}
    for folder in folders.values():
        with pytest.raises(UsageError, match=r"lies in the image folder .*, which is never"):
            check_folders(config(**folders, **{place: folder / "in"}))
