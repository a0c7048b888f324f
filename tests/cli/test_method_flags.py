"""The flags and recipe keys of one method and of several at once."""

from __future__ import annotations

import tomllib

import pytest

from smidgen.cli.arguments import read_request
from smidgen.cli.train import configs_of, parse_train, resolved
from smidgen.errors import UsageError
from smidgen.files.settings import recipe_text, settings_of
from smidgen.methods import METHODS

NEEDED = ("--base", "glyphs", "--data", "photos", "--output", "run")
BOTH = ("--method", "difffit+lora")


def _parse(*arguments):
    return parse_train(read_request("train", [*map(str, arguments), *NEEDED]))


def _recipe(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_flags_of_several_methods_begin_with_the_method():
    flags = ("--lora.rank", "4", "--lora.targets", "q", "k", "--difffit.blocks", "all")
    config = _parse(*BOTH, *flags, "--difffit.no-layer-norm", "--lora.alpha=2")["run"].method_config
    assert (config.lora.rank, config.lora.targets, config.lora.alpha) == (4, ("q", "k"), 2.0)
    assert (config.difffit.blocks, config.difffit.layer_norm) == ("all", False)
    assert config.difffit.biases


def test_none_is_a_value_of_a_flag_of_one_method():
    assert _parse(*BOTH, "--lora.alpha", "none")["run"].method_config.lora.alpha is None


def test_a_table_of_a_recipe_has_the_options_of_one_method(tmp_path):
    text = 'method = "difffit+lora"\nsteps = 7\n[lora]\nrank = 4\n[difffit]\nlayer-norm = false\n'
    parsed = _parse(_recipe(tmp_path, text), "--lora.alpha", "8")
    assert parsed["run"].training.steps == 7
    config = parsed["run"].method_config
    assert (config.lora.rank, config.lora.alpha) == (4, 8.0)
    assert not config.difffit.layer_norm


def test_the_resolved_recipe_of_several_methods_reads_back(tmp_path):
    parsed = _parse(*BOTH, "--lora.rank", "4", "--difffit.gammas", "block", "time")
    groups = settings_of(*map(type, configs_of(parsed)))
    text = recipe_text(resolved(parsed), groups)
    assert tomllib.loads(text)["lora"]["rank"] == 4
    again = _parse(_recipe(tmp_path, text))
    assert resolved(again) == resolved(parsed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lora.rnak", "3"), r'unknown flag "--lora.rnak"; did you mean "--lora.rank"'),
        (("--rank", "3"), 'unknown flag "--rank"'),
        (("--lora.rank", "ten"), '--lora.rank is "ten"; expected an integer'),
        (("--lora.rank", "0"), "rank is 0; expected at least 1"),
        (("--difffit.blocks", "4"), 'blocks is "4"; expected "auto", "half", "all" or a range'),
    ],
)
def test_wrong_flags_of_several_methods_are_named(flags, message):
    with pytest.raises(UsageError, match=message):
        _parse(*BOTH, *flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lora]\nrnak = 3\n", 'unknown key "lora.rnak"; did you mean "lora.rank"'),
        ("[lora]\nrank = 3.5\n", "lora.rank is 3.5; expected an integer"),
        ("rank = 3\n", 'unknown key "rank"'),
    ],
)
def test_wrong_recipes_of_several_methods_are_named(tmp_path, text, message):
    recipe = _recipe(tmp_path, f'method = "difffit+lora"\n{text}')
    with pytest.raises(UsageError, match=message):
        _parse(recipe)


@pytest.mark.parametrize("name", ["difffit+lorra", "lora+lora"])
def test_an_unknown_or_repeated_method_is_refused(name):
    with pytest.raises(UsageError, match=r"unknown method|twice"):
        _parse("--method", name)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_is_a_flag_with_its_default(name):
    assert _parse("--method", name)["run"].method_config == METHODS[name].config()


def test_help_lists_the_flags_of_every_method_named(capsys):
    with pytest.raises(SystemExit):
        _parse("--help", *BOTH)
    shown = capsys.readouterr().out
    assert "--lora.rank" in shown
    assert "--difffit.gammas" in shown
