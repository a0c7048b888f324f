"""What a user can get wrong: one or two lines, the right exit code, nothing lost, no traceback."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from smidgen.cli import train as train_verb
from smidgen.cli.main import VERBS
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError
from smidgen.files.standing import START_OVER

from .conftest import train_arguments


def assert_refused(outcome, *words, codes=(1, 2)):
    """The exit code is among `codes` and the complaint, all there is, has the words."""
    assert outcome.code in codes, outcome.err
    assert "Traceback" not in outcome.err
    assert 1 <= len(outcome.complaint) <= 2, outcome.err
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize("arguments", [(), ("trian",), ("--verbose",)])
def test_no_verb_or_an_unknown_one_lists_the_verbs(smidgen, arguments):
    assert_refused(smidgen(*arguments), *VERBS, codes=(2,))


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_has_two_examples(smidgen, verb):
    outcome = smidgen(*filter(None, [verb, "--help"]))
    assert outcome.code == 0
    examples = outcome.out.partition("examples:")[2].splitlines()
    named = f"  smidgen {verb}".rstrip()
    assert sum(line.startswith(named) for line in examples) >= 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--stpes", "3"), ('unknown flag "--stpes"', '"--steps"')),
        (("--rank", "8"), ('unknown flag "--rank"',)),
        (("--steps", "ten"), ('--steps is "ten"', "an integer")),
        (("--steps", "-3"), ("steps is -3",)),
        (("--steps", "0"), ("steps is 0",)),
        (("--lr", "nan"), ("lr is nan",)),
        (("--lr", "-inf"), ("lr is -inf",)),
        (("--lr", "-0.1"), ("lr is -0.1",)),
        (("--precision", "int8"), ("--precision", "fp32, bf16, fp16")),
        (("--lr",), ("--lr", "a number")),
        (("--method", "diffit"), ('unknown method "diffit"', '"difffit"')),
        (("--blocks", "9-3"), ("9-3",)),
        (("--gammas", "block", "nowhere"), ("block, qkv, proj, final, patch, time",)),
        (("--max-bad-share", "-1"), ("max_bad_share is -1",)),
        (("--num-threads", "999999"), ("num_threads is 999999", "at most 1024")),
        (("--batch-size", "9" * 12), ("batch_size is 999999999999", "at most 65536")),
        (("--image-size", "1" + "0" * 400), ("--image-size", "a number of pixels")),
        (("--image-size", "-8"), ("--image-size", "-8", "a number of pixels, or WIDTHxHEIGHT")),
        (("--image-size", "64x"), ("--image-size", "64x", "WIDTHxHEIGHT")),
        (("--base", "glyps/"), ("glyps/",)),
        (("--base", "DiT-XL/2"), ("DiT-XL/2", "without weights", "a file")),
        (("--base", "sd-1.4"), ("sd-1.4", "without weights", "a hub id", "inspect sd-1.4")),
        (("--base", "none.pt"), ("none.pt",)),
        (("stray",), ('unexpected "stray"',)),
        (("--time",), ("--time", "give --dry-run too")),
    ],
)
def test_wrong_flags_are_named_with_what_was_expected(
    smidgen, base, photos, tmp_path, flags, words
):
    run = tmp_path / "run"
    arguments = ("--base", base, "--data", photos, "--output", run, *flags)
    assert_refused(smidgen("train", *arguments), *words, codes=(2,))
    assert not run.exists()


@pytest.mark.parametrize(
    "verb", ["train", "sample", "evaluate", "compare", "anova", "inspect", "fold"]
)
def test_what_must_be_given_is_named(smidgen, verb):
    assert_refused(smidgen(verb), "missing", codes=(2,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stpes = 3\n", ('unknown key "stpes"', '"steps"')),
        ('steps = "many"\n', ('steps is "many"', "an integer")),
        ("steps = 3\nsteps = 4\n", ("line 2",)),
        ("steps = = 3\n", ("line 1",)),
        ('method = "lorra"\n', ('unknown method "lorra"', '"lora"')),
        ("method = 3\n", ("method",)),
        ("[training]\nsteps = 3\n", ('unknown key "training"',)),
        ("lr = nan\n", ("lr is nan",)),
        ("dry_run = true\n", ('unknown key "dry_run"',)),
        ("num_threads = 999999\n", ("num_threads is 999999",)),
        (f"{'.'.join(['method'] * 5000)} = 1\n", ("recipe.toml", "nested too deeply")),
        (f"method = {'[' * 5000}{']' * 5000}\n", ("recipe.toml", "nested too deeply")),
        (f"method = {'[' * 20}{']' * 20}\n", ("method",)),
    ],
)
def test_wrong_recipes_are_refused(smidgen, base, photos, tmp_path, text, words):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    arguments = ("--base", base, "--data", photos, "--output", tmp_path / "run")
    assert_refused(smidgen("train", recipe, *arguments), *words, codes=(2,))
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there_or_not_the_first_argument_is_refused(smidgen, tmp_path):
    assert_refused(smidgen("train", tmp_path / "none.toml"), "no such recipe", codes=(2,))
    assert_refused(smidgen("train", "recipe.yaml"), "recipe.yaml", ".toml", codes=(2,))
    (tmp_path / "r.toml").write_text("")
    late = smidgen("train", "--steps", 3, tmp_path / "r.toml")
    assert_refused(late, "r.toml", "a recipe comes first", codes=(2,))


def no_such_folder(folder):
    shutil.rmtree(folder)


def empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def class_without_image(folder):
    for path in (folder / "dog").iterdir():
        path.unlink()


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


def mostly_broken(folder):
    for path in (folder / "elk").iterdir():
        path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (no_such_folder, "no such folder"),
        (empty_folder, "image"),
        (class_without_image, "dog"),
        (a_file, "file"),
        (mostly_broken, "elk"),
    ],
)
def test_images_that_cannot_be_used_stop_the_run_first(
    smidgen, base, photos, tmp_path, spoil, word
):
    data = shutil.copytree(photos, tmp_path / "photos")
    spoil(data)
    outcome = smidgen(*train_arguments(base, data, tmp_path / "run"))
    assert_refused(outcome, word)
    assert not (tmp_path / "run" / "delta.safetensors").exists()


@pytest.mark.parametrize("verb", ["train", "sample", "fold", "evaluate"])
@pytest.mark.parametrize("place", ["a file", "below a file", "/proc"])
def test_an_impossible_output_is_refused_before_any_work(
    smidgen, base, photos, trained, tmp_path, verb, place
):
    (tmp_path / "note").write_text("keep me")
    below = {"a file": "note", "below a file": "note/run", "/proc": "/proc/smidgen/run"}[place]
    output = tmp_path / below
    given = {
        "train": ("--data", photos, "--base", base),
        "sample": ("--base", base),
        "fold": ("--base", base, "--delta", trained, "--format", "dit"),
        "evaluate": (photos, "--reference", photos),
    }[verb]
    outcome = smidgen(verb, *given, "--output", output)
    assert_refused(outcome, str(output), codes=(2,))
    assert (tmp_path / "note").read_text() == "keep me"
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["note"]


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path):
    path.write_bytes(b"not a delta at all")


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("verb", ["sample", "fold"])
@pytest.mark.parametrize("spoil", [truncated, foreign, emptied])
def test_a_damaged_delta_is_refused_by_name(smidgen, base, trained, tmp_path, verb, spoil):
    delta = shutil.copy(trained, tmp_path / "delta.safetensors")
    spoil(delta)
    more = ("--format", "dit") if verb == "fold" else ()
    outcome = smidgen(verb, "--base", base, "--delta", delta, *more, "--output", tmp_path / "out")
    assert_refused(outcome, "delta.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["sample", "fold"])
def test_a_delta_for_another_base_is_refused(smidgen, other_base, trained, tmp_path, verb):
    more = ("--format", "dit") if verb == "fold" else ()
    arguments = ("--delta", trained, *more, "--output", tmp_path / "out")
    outcome = smidgen(verb, "--base", other_base, *arguments)
    assert_refused(outcome, "made for", codes=(1,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--classes", "ant,bea"), ('unknown class "bea"', '"bee"')),
        (("--classes", ""), ("class",)),
        (("--num-images", "0"), ("num_images is 0",)),
        (("--steps", "-1"), ("steps is -1",)),
        (("--steps", "1001"), ("steps is 1001",)),
        (("--guidance", "nan"), ("guidance is nan",)),
        (("--guidance", "-1"), ("guidance is -1",)),
        (("--seed", "-1"), ("seed is -1",)),
        (("--batch-size", "0"), ("batch_size is 0",)),
        (("--sampler", "euler"), ("ddpm, ddim, dpm++",)),
        (("--delta", "none.safetensors"), ("no such delta",)),
        (("--device", "cuda"), ("cuda",)),
    ],
)
def test_wrong_sampling_flags_are_refused(smidgen, base, tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = smidgen("sample", "--base", base, "--output", tmp_path / "out", *flags)
    assert_refused(outcome, *words, codes=(2,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none", "--reference", "none"), ("none",)),
        ((".", "--reference", "nowhere"), ("no such reference: nowhere",)),
        ((".", "--reference", ".", "--features", "inceptoin"), ('unknown features "inceptoin"',)),
        (("none", "--reference", "."), ("no such run, delta or folder of images: none",)),
        ((".", "--reference", ".", "--batch-size", "0"), ("batch_size is 0",)),
        (("."), ("missing --reference",)),
    ],
)
def test_wrong_evaluation_arguments_are_refused(smidgen, arguments, words):
    assert_refused(smidgen("evaluate", *arguments), *words, codes=(2,))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("DiT-Q/2",), ("DiT-Q/2",)),
        (("DiT-XL/2", "--num-classes", "0"), ("num_classes is 0",)),
        (("DiT-XL/2", "--method", "dora"), ('unknown method "dora"',)),
        (("DiT-XL/2", "--blocks", "27-29"), ("1-28",)),
        (("no-such-base",), ("no-such-base",)),
    ],
)
def test_wrong_inspections_are_refused(smidgen, arguments, words):
    assert_refused(smidgen("inspect", *arguments), *words, codes=(2,))


@pytest.mark.parametrize("text", ["[]", "{", '{"images": 3}', '{"settings": [], "images": {}}'])
def test_a_record_of_another_program_is_never_replaced_unasked(smidgen, base, tmp_path, text):
    (tmp_path / "sample.json").write_text(text)
    arguments = ("sample", "--base", base, "--steps", 2, "--output", tmp_path)
    assert_refused(smidgen(*arguments), "is no record of smidgen sample", START_OVER, codes=(2,))
    assert (tmp_path / "sample.json").read_text() == text
    assert smidgen(*arguments, "--force").code == 0
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_description_of_the_wrong_type_is_refused_in_a_line(smidgen, base, tmp_path):
    other = shutil.copytree(base, tmp_path / "base")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"class_names": 3}))
    outcome = smidgen("sample", "--base", other, "--output", tmp_path / "out")
    assert_refused(outcome, "class_names")


def raising(error):
    def run(*_, **__):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 1, "no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "x.png"), 1, "x.png"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 1, "--batch-size"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "--batch-size"),
        (SmidgenError("the lamp is out"), 1, "the lamp is out"),
    ],
)
def test_what_breaks_during_the_work_is_said_in_a_line(
    smidgen, base, photos, tmp_path, monkeypatch, error, code, word
):
    monkeypatch.setattr(train_verb, "train", raising(error))
    outcome = smidgen(*train_arguments(base, photos, tmp_path / "run"))
    assert_refused(outcome, word, codes=(code,))


def test_debug_shows_the_traceback_and_a_mistake_of_ours_always_does(
    smidgen, base, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_verb, "train", raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        smidgen(*train_arguments(base, photos, tmp_path / "run"))
    monkeypatch.setattr(train_verb, "train", raising(SmidgenError("theirs")))
    monkeypatch.setenv("SMIDGEN_DEBUG", "1")
    with pytest.raises(SmidgenError):
        smidgen(*train_arguments(base, photos, tmp_path / "run"))


def test_a_full_disk_leaves_the_record_unfinished_and_the_next_run_completes(
    smidgen, base, tmp_path, monkeypatch
):
    folder = tmp_path / "samples"
    arguments = ("sample", "--base", base, "--output", folder, "--steps", 2)
    save = Image.Image.save

    def full(self, path, *rest, **more):
        if "000001" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(self, path, *rest, **more)

    with monkeypatch.context() as disk:
        disk.setattr(Image.Image, "save", full)
        outcome = smidgen(*arguments)
    assert outcome.code == 1
    assert "No space left" in outcome.err
    assert smidgen(*arguments).code == 0
    assert len(list(folder.glob("*.png"))) == 3


def test_failing_leaves_the_delta_of_before(smidgen, base, photos, trained, tmp_path):
    run = shutil.copytree(trained.parent, tmp_path / "run")
    assert_refused(smidgen(*train_arguments(base, photos, run, "--seed", "9")), "seed")
    assert Delta.load(run / "delta.safetensors").num_parameters() > 0


def test_misuse_is_answered_without_importing_torch(tmp_path):
    program = (
        "import sys; from smidgen.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(99 if {'torch', 'diffusers'} & set(sys.modules) else code)"
    )
    output = ("--output", str(tmp_path / "run"))
    train = ("train", "--base", ".", "--data", str(tmp_path), *output)
    for arguments in (
        ("trian",),
        ("--help",),
        ("train", "--base", ".", "--data", str(tmp_path / "none"), *output),
        (*train, "--lr", "nan"),
        (*train, "--steps", "0"),
        ("sample", "--base", "glyfs/", *output),
        ("sample", "--base", ".", "--output", "/proc/x"),
        ("sample", "--base", "glyphs", "--classes", "omega", *output),
        ("evaluate", "none", "--reference", "none"),
        ("fold", "--base", ".", "--delta", "none", "--format", "dit", *output),
        ("anova", "none.csv", "--metric", "fd", "--factors", "method"),
    ):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 2), (arguments, done.stderr)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_and_a_mistyped_flag_are_answered_without_importing_torch(verb):
    program = (
        "import sys; from smidgen.cli.main import main\n"
        "def call(*argv):\n"
        "    try:\n"
        "        return main(argv)\n"
        "    except SystemExit as leaving:\n"
        "        return int(leaving.code or 0)\n"
        "codes = [call(sys.argv[1], '--help'), call(sys.argv[1], '--stpes', '3')]\n"
        "assert codes == [0, 2], codes\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", program, verb]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: smidgen {verb} ")
    assert 'unknown flag "--stpes"' in done.stderr


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_more_images_at_a_time_than_memory_holds_are_refused_before_it_is_asked(
    smidgen, base, photos, tmp_path, verb
):
    places = {"sample": ("--base", base), "evaluate": (photos, "--reference", photos)}[verb]
    outcome = smidgen(verb, *places, "--output", tmp_path / "out", "--batch-size", 10**12)
    assert_refused(outcome, "batch_size is 1000000000000", "at most 65536", codes=(2,))


def test_a_refusal_is_one_line_whatever_the_name_of_a_file_is(smidgen, tmp_path):
    outcome = smidgen("inspect", tmp_path / "a\nb\x1b[2J.safetensors")
    assert_refused(outcome, r"a\nb\x1b[2J.safetensors")


def test_a_pipe_in_the_place_of_a_configuration_is_refused_and_not_waited_for(smidgen, tmp_path):
    os.mkfifo(tmp_path / "config.json")
    assert smidgen("sample", "--base", tmp_path, "--output", tmp_path / "out").code != 0


@pytest.mark.parametrize("size", [9, 6, 100_000])
def test_a_size_that_a_base_cannot_have_is_one_line_in_the_dry_run_too(
    smidgen, base, photos, tmp_path, size
):
    places = ("--base", base, "--data", photos, "--output", tmp_path / "run")
    for flags in ((), ("--dry-run",)):
        assert_refused(smidgen("train", *places, "--image-size", size, *flags), "size")
    assert not (tmp_path / "run").exists()
