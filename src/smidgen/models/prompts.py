"""The prompt of a class: its name in the place of {class} in a template. Imports no torch."""

CLASS = "{class}"
DEFAULT_PROMPT = "a photo of a {class}"
# where a delta's provenance says which prompts it was trained on: those of classes, captions, or
# that of a subject
PROMPTS, CAPTIONS, DREAMBOOTH = "prompts", "captions", "dreambooth"


def prompt_of(name: str, template: str) -> str:
    """The prompt of the class of this name."""
    return template.replace(CLASS, name)
