"""A folder with a small file of every kind that the program reads; `Folder` puts it back as it was.

All is made by seeds in the folder where the process is, so that paths in files are short and equal
bytes are changed wherever a case is repeated.
"""

import contextlib
import io
import itertools
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from smidgen.cli.main import main
from smidgen.core.delta import Delta
from tests.cli.conftest import IMAGE_SIZE, write_base
from tests.tiny.images import noise

LONG_AGO = 1_700_000_000 * 10**9  # the time of change of every file, in nanoseconds
TIMES = {"date": "2024-01-01T00:00:00Z", "seconds": 1.5, "seconds_now": 1.5, "num_threads": 1}
TRAIN = (
    "train --base base --data photos --steps 2 --batch-size 4 --checkpoint-every 1 --trackers "
    "--validation-share 0 --num-threads 1"
)
SAMPLE = "sample --base base --steps 1 --num-images 6"
EVALUATE = "evaluate --features glyphs --metrics fd,kid,density,class_agreement"
DRAWN = "--num-images 6 --steps 1 --reference photos"
SUFFIXES = {"alpha": ("png", "jpg", "webp", "bmp"), "beta": ("gif", "tif", "png", "jpg")}


CACHE = "cache"  # what the program keeps for itself; damaged parts of it are thrown away
Marks = dict[str, tuple[int, int, int]]  # of every path: its kind, size and time of change


class World:
    """The folder, made once and put back as it was after each case."""

    def __init__(self, root: Path, build: Callable[[], None]) -> None:
        os.chdir(root)
        os.environ["SMIDGEN_CACHE"] = CACHE
        os.environ["TMPDIR"] = tempfile.tempdir = str(root / "tmp")
        os.environ["HF_HUB_OFFLINE"] = "1"
        Path("tmp").mkdir()
        build()
        self._marks = marks()
        self._contents = {p: Path(p).read_bytes() for p in self._marks if Path(p).is_file()}

    def restore(self) -> None:
        """Everything as it was made."""
        for path, mark in sorted(marks().items(), reverse=True):
            if self._marks.get(path) != mark:
                remove(Path(path))
        for path, mark in sorted(self._marks.items()):
            if os.path.lexists(path):
                continue
            if path in self._contents:
                Path(path).write_bytes(self._contents[path])
                os.utime(path, ns=(mark[2], mark[2]))
            else:
                Path(path).mkdir()


def marks() -> Marks:
    """Everything in the current folder."""
    found = {}
    for path in Path().rglob("*"):
        facts = path.lstat()
        of_file = (0, 0) if path.is_dir() else (facts.st_size, facts.st_mtime_ns)
        found[str(path)] = (stat.S_IFMT(facts.st_mode), *of_file)
    return found


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def smidgen(command: str) -> None:
    """A command that must succeed."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main(command.split())
    assert code == 0, f"smidgen {command}: {err.getvalue()}"


def build() -> None:
    """Everything, in the current folder."""
    Path("notes.txt").write_text("somebody's own\n")
    write_images()
    write_bases()
    write_deltas()
    settle()
    write_measured()
    write_recipes()
    write_table()
    settle()


def write_images() -> None:
    """Pictures in all common formats, and what lies beside them."""
    for name, suffixes in SUFFIXES.items():
        Path("photos", name).mkdir(parents=True)
        for number, suffix in enumerate(suffixes):
            pixels = noise(len(name) * number + len(suffix), IMAGE_SIZE, IMAGE_SIZE)
            Image.fromarray(pixels).save(f"photos/{name}/{number}.{suffix}")
    Path("photos/alpha/notes.txt").write_text("about a letter\n")


def write_bases() -> None:
    """A DiT as ours, as a file and as a pipeline; pipelines that read prompts; a CLIP."""
    from tests.tiny.pipelines import TINY_PIPELINES

    write_base(Path("base"), seed=0)
    Path("single").mkdir()
    for name in ("dit.safetensors", "config.json"):
        shutil.copy(f"base/{name}", f"single/{name}")
    smidgen(f"{TRAIN} --output delta-run --method bitfit")
    for form, output in (("dit", "dit.pt"), ("diffusers", "pipeline")):
        fold = f"fold --base base --format {form} --output {output}"
        smidgen(f"{fold} --delta delta-run/delta.safetensors")
    shutil.rmtree("delta-run")
    TINY_PIPELINES["sd"].save(Path("sd"))
    TINY_PIPELINES["sd3"].save(Path("sd3"))


def write_deltas() -> None:
    """Runs, a delta of each common method, and LoRA files as other programs write them."""
    smidgen(f"{TRAIN} --output run --validation-share 0.3")
    shutil.copy("run/delta.safetensors", "difffit.safetensors")
    for method in ("vpt", "adaptformer", "full", "lora"):
        smidgen(f"{TRAIN} --output made --method {method}")
        shutil.copy("made/delta.safetensors", f"{method}.safetensors")
        shutil.rmtree("made")
    trained = Delta.load(Path("lora.safetensors"))
    edits = {name: edit for name, edit in trained.edits.items() if name != "label_table"}
    Delta(edits, trained.provenance).save(Path("plain-lora.safetensors"))
    Path("theirs").mkdir()
    for form in ("peft", "kohya"):
        smidgen(
            f"convert --base base --file plain-lora.safetensors --format {form} "
            f"--output theirs/{form}.safetensors"
        )
    tensors = load_file("theirs/peft.safetensors")
    torch.save({"state_dict": tensors}, "theirs/peft.pt")
    Path("peft").mkdir()
    plain = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    named = {f"base_model.model.{key}": tensor for key, tensor in plain.items()}
    save_file(named, "peft/adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "alpha_pattern": {"blocks.0.attn.qkv": 4},
        "rank_pattern": {},
        "init_lora_weights": True,
        "use_rslora": False,
        "target_modules": ["qkv"],
        "bias": "none",
        "modules_to_save": None,
    }
    Path("peft/adapter_config.json").write_text(json.dumps(config, indent=2))


def write_measured() -> None:
    """Samples with their record, statistics, batches of images, results."""
    smidgen(f"{SAMPLE} --delta difffit.safetensors --output samples")
    Path("samples/mine.txt").write_text("somebody's own\n")
    settle()
    smidgen(
        f"{EVALUATE} samples --reference photos --output result.json --statistics reference.npz"
    )
    smidgen(f"{EVALUATE} run {DRAWN} --output other/result.json")
    with np.load("reference.npz") as archive:
        np.savez("foreign.npz", mu=archive["mu"], sigma=archive["sigma"])
    np.savez("batch.npz", arr_0=np.stack([noise(seed, 8, 8) for seed in range(6)]))


def write_recipes() -> None:
    """A recipe for each verb that draws or trains, as the dry run prints it."""
    for verb, command in (
        ("train", f"{TRAIN} --output out"),
        ("sample", f"{SAMPLE} --output out"),
        ("evaluate", f"{EVALUATE} samples --reference photos --output out.json"),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main([*command.split(), "--dry-run"]) == 0
        lines = [line for line in printed.getvalue().splitlines() if not line.startswith("#")]
        Path(f"{verb}.toml").write_text("\n".join(lines) + "\n")


def write_table() -> None:
    """Two methods on three tasks with two seeds, and a method alone on a task of its own."""
    runs = itertools.product("ab", "xyz", "12")
    rows = [f"{','.join(run)},{place % 7}.5" for place, run in enumerate(runs)]
    rows = ["method,task,seed,fd", *rows, "c,w,1,9", "c,w,2,11"]
    Path("table.csv").write_text("\n".join(rows) + "\n")


def settle() -> None:
    """What depends on when and how fast the files were made is the same every time."""
    for path in (*Path("run").glob("checkpoints/*/state.json"), Path("run/run.json")):
        document = json.loads(path.read_text())
        document |= {name: value for name, value in TIMES.items() if name in document}
        path.write_text(json.dumps(document, indent=2))
    log = Path("run/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line | {"images_per_second": 9.5}) + "\n" for line in lines))
    for path in Path().rglob("*"):
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
