"""The settings of a personalisation (DreamBooth, arXiv 2208.12242): the prompts of the subject and
of its class, and which settings are of use to which task. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smidgen.errors import UsageError
from smidgen.models.prompts import CLASS, DEFAULT_PROMPT, DREAMBOOTH, prompt_of

if TYPE_CHECKING:
    from smidgen.training.config import RunConfig

TOKEN = "{token}"
NEW_WORD = "textual-inversion"  # the method whose new word the token is, whatever the task
INSTANCE_PROMPT = f"a photo of {TOKEN} {CLASS}"
CLASS_IMAGES = 200  # that the base draws unless told otherwise, as in the paper's code


@dataclass(frozen=True, kw_only=True)
class SubjectPrompts:
    """What the network is told of the subject's images, and of those of its class."""

    instance: str
    of_class: str


def subject_prompts(config: RunConfig) -> SubjectPrompts:
    """The prompts of a run whose task is dreambooth: what is not given is made of what is, so that
    the two differ by the token alone; the paper's where neither is.

    Raises: UsageError if the instance prompt is without the token, or that of the class has it.
    """
    token, name = config.token or "", config.class_name or ""
    instance, of_class = config.instance_prompt, config.training.prompt
    if instance is None and of_class is None:
        instance, of_class = INSTANCE_PROMPT, DEFAULT_PROMPT
    elif instance is None and of_class is not None:
        instance = of_class.replace(CLASS, f"{TOKEN} {CLASS}")
    assert instance is not None, "made of the prompt of the class where it was not given"
    instance = prompt_of(name, instance.replace(TOKEN, token))
    if not has_word(instance, token):
        raise UsageError(
            f'instance_prompt is "{config.instance_prompt}"; expected text with {TOKEN} in it'
        )
    of_class = without_word(instance, token) if of_class is None else prompt_of(name, of_class)
    if has_word(of_class, token):
        raise UsageError(
            f'the prompt of the class is "{of_class}", with the token in it; leave it out there'
        )
    return SubjectPrompts(instance=instance, of_class=of_class)


def class_prompts(config: RunConfig, captions: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """What the images of the class are told, each once: what the subject's are told, in these
    captions, without the token. Where the captions name more than the subject, such as colours,
    only the token then tells it from its class.
    """
    prompts, token = subject_prompts(config), config.token or ""
    texts = dict.fromkeys(text for own in captions for text in own)
    found = (prompts.of_class if t == prompts.instance else _of_class(t, token) for t in texts)
    return tuple(dict.fromkeys(found)) or (prompts.of_class,)


def _of_class(text: str, token: str) -> str:
    """The text without the token, and the article before it as the next word asks for."""

    def article(found: re.Match[str]) -> str:
        return f"{'an' if found[2].lower() in 'aeiou' else 'a'} {found[2]}"

    pattern = rf"\b(an?) {re.escape(token)} (\w)"
    return without_word(re.sub(pattern, article, text, flags=re.IGNORECASE), token)


def has_word(text: str, word: str) -> bool:
    """Whether a word stands in a text by itself."""
    return _as_word(word).search(text) is not None


def without_word(text: str, word: str) -> str:
    """The text where this word is left out."""
    return re.sub(r"\s+", " ", _as_word(word).sub("", text)).strip()


def _as_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def check_task(config: RunConfig) -> None:
    """Raises: UsageError for settings that are of no use to the task, or that it lacks."""
    own = ("token", "class_name", "instance_prompt", "class_data", "class_images", "class_guidance")
    given = {name: getattr(config, name) for name in own}
    given["prior_weight"] = config.training.prior_weight
    if config.task != DREAMBOOTH:
        if NEW_WORD in config.method.split("+"):
            del given["token"]
        _refuse(given, f'is of no use to task "{config.task}"; leave it out, or give {DREAMBOOTH}')
        return
    _check_words(config.token, config.class_name)
    subject_prompts(config)
    of_images = {name: given[name] for name in ("class_data", "class_images", "class_guidance")}
    if config.training.prior_weight == 0:
        _refuse(of_images, "is of no use where prior_weight is 0: no images of the class are used")
    elif of_images.pop("class_data") is not None:
        _refuse(of_images, "is of what the base draws, and class_data has the images; leave it out")


def _refuse(settings: dict[str, object], why: str) -> None:
    for name, value in settings.items():
        if value is not None:
            raise UsageError(f"{name} {why}")


def _check_words(token: str | None, class_name: str | None) -> None:
    if not token or token.split() != [token]:
        raise UsageError(
            f"token is {token!r}; task {DREAMBOOTH} expects one word that means nothing yet, such "
            "as sks"
        )
    if not class_name or not class_name.strip():
        raise UsageError(
            f"class_name is {class_name!r}; task {DREAMBOOTH} expects what the subject is one of, "
            "such as owl"
        )
    if has_word(class_name, token):
        raise UsageError(
            f'token "{token}" is a word of class_name "{class_name}"; give one that means nothing '
            "yet, such as sks"
        )


def check_folders(config: RunConfig) -> None:
    """Raises: UsageError if the images of the class and those of the subject lie in one folder, or
    the folder of the one in that of the other, or if anything would be written to them.
    """
    folders = {"data": config.data, "class_data": config.class_data}
    given = {name: folder.resolve() for name, folder in folders.items() if folder is not None}
    one, other = given["data"], given.get("class_data")
    if other is not None and (one.is_relative_to(other) or other.is_relative_to(one)):
        raise UsageError(
            f"class_data {config.class_data} and data {config.data} are one folder, or one lies in "
            "the other; give the subject's images and those of its class apart"
        )
    for what, place in (("output", config.output), ("cache folder", config.cache_dir)):
        for name, folder in given.items():
            if place is not None and place.resolve().is_relative_to(folder):
                raise UsageError(
                    f"the {what} {place} lies in the image folder {folders[name]}, which is never "
                    "written to; give another"
                )


def provenance_of_subject(config: RunConfig, num_class_images: int) -> dict[str, str | int | None]:
    """What a delta says of the subject that it was trained on."""
    prompts = subject_prompts(config)
    return {
        "token": config.token,
        "class_name": config.class_name,
        "instance_prompt": prompts.instance,
        "class_prompt": prompts.of_class,
        "class_images": num_class_images,
    }
