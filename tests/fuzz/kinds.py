"""Every kind of file that the program reads: where it lies in the folder of world.py, how it is
changed, and the commands that read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz import changes
from tests.fuzz.changes import Change
from tests.fuzz.world import DRAWN, EVALUATE, SAMPLE, TRAIN

TENSORS = (changes.tensors_of, changes.tensors_of, changes.header_of, changes.bytes_of)
DELTA = (changes.metadata_of, changes.metadata_of, *TENSORS)
PICKLE = (changes.pickle_of, changes.pickle_of, changes.zip_of, changes.bytes_of)
JSON = (changes.json_of, changes.json_of, changes.json_of, changes.bytes_of)
ARRAYS = (changes.arrays_of, changes.arrays_of, changes.zip_of, changes.bytes_of)
TOML = (changes.toml_of, changes.toml_of, changes.bytes_of)

RUN = f"{TRAIN} --output run --validation-share 0.3"
OF_RUN = (f"{RUN} --steps 3", RUN, f"{EVALUATE} run {DRAWN} --output out.json")
IMPORT = "convert --base base --format delta --output out.safetensors --file"
EXPORT = "convert --base base --output out.safetensors --file {file} --format"
FOLD = "fold --base base --delta {file} --output out.pt --format"
FILE = "--base {file} --codec base/vae --output out"
PROMPT = "sample --prompt a --steps 1 --output out --base {top}"
ONE = "sample --base {top} --steps 1 --num-images 1 --output out"


@dataclass(frozen=True)
class Kind:
    """Files that are read alike. In a command {file} is the file, {stem} its name without suffix,
    {top} the folder it is in. `own`: what lies there is the program's, which may change it where it
    succeeds; all else is somebody's, as is everything where it refuses.
    """

    files: Sequence[str]
    changes: Sequence[Change]
    commands: Sequence[str]
    own: Sequence[str] = ()


KINDS: dict[str, Kind] = {
    "delta": Kind(
        ("difffit.safetensors", "vpt.safetensors", "adaptformer.safetensors"),
        DELTA,
        (
            f"{SAMPLE} --delta {{file}} --output out",
            f"{SAMPLE} --delta {{file}} --output out --classes alpha --dry-run",
            "inspect {file}",
            f"{EVALUATE} {{file}} {DRAWN} --output out.json",
            f"{TRAIN} --output out --method {{stem}} --init {{file}}",
        ),
    ),
    "folded delta": Kind(
        ("difffit.safetensors", "full.safetensors", "lora.safetensors"),
        DELTA,
        (f"{FOLD} dit", f"{FOLD} diffusers"),
    ),
    "exported delta": Kind(
        ("plain-lora.safetensors",), DELTA, (f"{EXPORT} peft", f"{EXPORT} kohya")
    ),
    "lora": Kind(
        ("theirs/peft.safetensors", "theirs/kohya.safetensors"),
        (*TENSORS, changes.metadata_of),
        (
            f"{IMPORT} {{file}}",
            f"{IMPORT} {{file}} --leave-out-text-encoder",
            f"{TRAIN} --output out --method lora --init {{file}}",
        ),
    ),
    "lora pickle": Kind(("theirs/peft.pt",), PICKLE, (f"{IMPORT} {{file}}",)),
    "adapter": Kind(
        ("peft/adapter_model.safetensors",), TENSORS, (f"{IMPORT} {{file}}", f"{IMPORT} peft")
    ),
    "adapter's configuration": Kind(
        ("peft/adapter_config.json",),
        JSON,
        (f"{IMPORT} peft/adapter_model.safetensors", f"{IMPORT} peft"),
    ),
    "base file": Kind(
        ("single/dit.safetensors",),
        TENSORS,
        (f"sample --steps 1 --num-images 1 {FILE}", f"{TRAIN} {FILE}", "inspect {file}"),
    ),
    "base pickle": Kind(
        ("dit.pt",),
        PICKLE,
        (f"sample --steps 1 --num-images 1 {FILE}", f"{TRAIN} {FILE} --dry-run", "inspect {file}"),
    ),
    "base's weights": Kind(
        ("base/dit.safetensors", "base/vae/*.safetensors", "pipeline/*/*.safetensors"),
        TENSORS,
        (ONE, "inspect {top}"),
    ),
    "base's configuration": Kind(
        ("base/config.json", "base/vae/config.json", "pipeline/*.json", "pipeline/*/*.json"),
        JSON,
        (
            ONE,
            f"{TRAIN} --base {{top}} --output out",
            f"{TRAIN} --base {{top}} --output out --dry-run",
            "inspect {top}",
        ),
    ),
    "pipeline's weights": Kind(
        ("sd/*/*.safetensors", "sd3/*/*.safetensors"),
        TENSORS,
        (PROMPT, f"{TRAIN} --base {{top}} --output out --dry-run"),
    ),
    "pipeline's configuration": Kind(
        ("sd/*.json", "sd/*/*.json", "sd3/*.json", "sd3/*/*.json"),
        JSON,
        (PROMPT, f"{TRAIN} --base {{top}} --output out", "inspect {top}"),
    ),
    "checkpoint": Kind(
        ("run/checkpoints/step-2/state.safetensors",), TENSORS, (f"{RUN} --steps 3",), ("run",)
    ),
    "checkpoint's record": Kind(
        ("run/checkpoints/step-2/state.json",),
        JSON,
        (f"{RUN} --steps 3", RUN, f"{RUN} --steps 3 --dry-run"),
        ("run",),
    ),
    "run's recipe": Kind(("run/recipe.toml",), TOML, (*OF_RUN, f"{RUN} --force"), ("run",)),
    "run's log": Kind(
        ("run/log.jsonl",),
        (changes.json_lines, changes.json_lines, changes.bytes_of),
        OF_RUN[:2],
        ("run",),
    ),
    "run's delta": Kind(
        ("run/delta.safetensors", "run/deltas/*.safetensors"), DELTA, OF_RUN, ("run",)
    ),
    "statistics": Kind(
        ("reference.npz",),
        ARRAYS,
        (
            f"{EVALUATE} samples --reference {{file}} --output out.json",
            "evaluate samples --reference {file} --features glyphs --output out.json",
            "evaluate photos --reference {file} --metrics fd --output out.json",
        ),
    ),
    "foreign statistics": Kind(
        ("foreign.npz",),
        ARRAYS,
        ("evaluate samples --reference {file} --metrics fd --output out.json",),
    ),
    "batch": Kind(
        ("batch.npz",),
        ARRAYS,
        (
            "evaluate batch.npz --reference photos --metrics fd,kid --output out.json",
            "evaluate samples --reference batch.npz --metrics fd,kid --output out.json",
        ),
    ),
    "result": Kind(
        ("result.json", "other/result.json"),
        JSON,
        (
            "compare result.json other",
            "compare result.json other/result.json --any-protocol",
            f"{EVALUATE} samples --reference photos --output result.json",
            f"{EVALUATE} samples --reference photos --output result.json --force",
        ),
        ("result.json",),
    ),
    "table": Kind(
        ("table.csv",),
        (changes.csv_of, changes.csv_of, changes.bytes_of),
        (
            "anova table.csv --metric fd --factors method,task",
            "anova table.csv --metric fd --factors method,task --interaction method:task --json",
            "anova table.csv --metric fd --factors method --blocks task,seed --dry-run",
        ),
    ),
    "record": Kind(
        ("samples/sample.json",),
        JSON,
        (
            f"{SAMPLE} --delta difffit.safetensors --output samples",
            f"{SAMPLE} --delta difffit.safetensors --output samples --force",
            f"{SAMPLE} --output samples --force",
            "evaluate samples --reference photos --metrics fd,class_agreement --output out.json",
        ),
        ("samples/0", "samples/sample.json"),
    ),
    "drawn picture": Kind(
        ("samples/0*.png",),
        (changes.png_of, changes.png_text_of, changes.png_text_of, changes.bytes_of),
        ("sample --like {file} --delta difffit.safetensors --output out",),
    ),
    "given picture": Kind(
        ("photos/*/*",),
        (changes.png_of, changes.png_of, changes.bytes_of),
        (
            f"{SAMPLE} --output out --image {{file}} --image-strength 1",
            f"{SAMPLE} --output out --image {{file}} --restore denoise --noise-level 0.1 --dry-run",
        ),
    ),
    "recipe": Kind(
        ("train.toml", "sample.toml", "evaluate.toml"),
        TOML,
        ("{stem} {file}", "{stem} {file} --dry-run"),
    ),
    "cached latents": Kind(("cache/latents/*/*.safetensors",), DELTA, (f"{TRAIN} --output out",)),
    "cached statistics": Kind(
        ("cache/statistics/*.npz",),
        ARRAYS,
        (f"{EVALUATE} samples --reference photos --output out.json",),
    ),
    "image": Kind(
        ("photos/*/*",),
        (changes.png_of, changes.png_of, changes.bytes_of),
        (
            f"{TRAIN} --output out",
            f"{TRAIN} --output out --max-bad-share 0.5",
            f"{TRAIN} --output out --dry-run",
            "evaluate photos --reference reference.npz --metrics fd,kid --output out.json",
            "evaluate samples --reference photos --metrics fd,kid --output out.json",
        ),
    ),
}
