"""How a delta is used, as the sections of its card: here, and in diffusers where it acts there."""

from __future__ import annotations

import shlex

from smidgen.core.bypass import Bypass
from smidgen.core.delta import Delta
from smidgen.core.tokens import Tokens
from smidgen.core.word import Word
from smidgen.files.run_files import DELTA
from smidgen.hosts.host import families_by_host
from smidgen.interop.lora import not_lora
from smidgen.models.labels import trained_prompt
from smidgen.models.names import shipped_names

OWN_NETWORK = "dit"  # the host whose network is ours and not diffusers' own
WITHOUT_LORA_LOADER = ("pixart",)  # whose pipelines in diffusers have no `load_lora_weights`


def here(delta: Delta, repo: str, base: str) -> list[str]:
    """Lines of Markdown: pull and draw, in Python and on the command line."""
    folder = repo.partition("/")[2]
    prompt = trained_prompt(delta)
    in_python = "" if prompt is None else f", prompts={prompt!r}"
    on_line = "" if prompt is None else f" --prompt {shlex.quote(prompt)}"
    return [
        *_code(
            "python",
            "import smidgen",
            "",
            f"base = smidgen.load_base({base!r})",
            f'delta = smidgen.pull("{repo}", output="{folder}", base=base)',
            f"images = smidgen.sample(base, delta=delta, num_images=4{in_python})",
        ),
        *_code(
            "",
            f"smidgen pull {repo} --base {shlex.quote(base)} --output {folder}",
            f"smidgen sample --base {shlex.quote(base)} --delta {folder}/{DELTA}{on_line} "
            "--num-images 4 --output samples",
        ),
    ]


def in_diffusers(delta: Delta, repo: str, base: str) -> list[str]:
    """Lines of Markdown on how the delta is used without smidgen's sampler, none if it is not."""
    folder = repo.partition("/")[2]
    file, edits = f"{folder}/{DELTA}", delta.edits.values()
    host = delta.provenance.host
    if host == OWN_NETWORK:
        if not _folds(delta):
            return []
        return [
            "Folded into a copy of the base it is a folder for `DiTPipeline`, whose timestep "
            "frequencies need a word (smidgen's docs/interop.md):",
            "",
            *_code(
                "", f"smidgen fold --base {shlex.quote(base)} --delta {file} --format diffusers "
                "--output folded"
            ),
        ]  # fmt: skip
    family = families_by_host().get(host)
    if family is None:
        return []
    if any(isinstance(edit, Word) for edit in edits):
        return _words(delta, base, file)
    source = f"smidgen.load_base({base!r}).source" if base in shipped_names() else repr(base)
    parts = [f"pipe.{family.component}"] if any(not edit.component for edit in edits) else []
    attached = [f"delta.attach({part})" for part in parts]
    attached += [f'delta.attach(pipe.{name}, component="{name}")' for name in delta.components]
    lines = _code(
        "python",
        "import smidgen",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({source})",
        f'delta = smidgen.Delta.load("{file}")',
        f"with {', '.join(attached)}:",
        f"    image = pipe({trained_prompt(delta) or ''!r}).images[0]",
    )
    lora = not delta.components and all(not_lora(edit) is None for edit in edits)
    if lora and host not in WITHOUT_LORA_LOADER:
        lines += [
            "As a file that `pipe.load_lora_weights` and PEFT read:",
            "",
            *_code(
                "", f"smidgen convert --base {shlex.quote(base)} --file {file} --format peft "
                "--output lora.safetensors"
            ),
        ]  # fmt: skip
    return lines


def _words(delta: Delta, base: str, file: str) -> list[str]:
    if not all(isinstance(edit, Word) for edit in delta.edits.values()):
        return []
    command = f"smidgen convert --base {shlex.quote(base)} --file {file} --format embeddings"
    return [
        "As a file that `pipe.load_textual_inversion` and ComfyUI read:",
        "",
        *_code("", f"{command} --output word.safetensors"),
    ]


def _folds(delta: Delta) -> bool:
    """Whether a network of ours takes all of the delta up (docs/interop.md)."""
    return not any(
        isinstance(edit, Tokens) or (isinstance(edit, Bypass) and not_lora(edit) is not None)
        for edit in delta.edits.values()
    )


def _code(language: str, *lines: str) -> list[str]:
    """A block of code, whatever its lines hold."""
    return [f"````{language}", *lines, "````", ""]
