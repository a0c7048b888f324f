"""Trainings in which the base's label table stays as it is, on some of its own classes."""

import tomllib

import pytest
import torch

import smidgen
from smidgen.api.planning import plan_run
from smidgen.core.delta import Delta
from smidgen.core.file import read_header
from smidgen.errors import UsageError
from smidgen.files.run_files import RECIPE
from smidgen.models.dit import DiT
from smidgen.models.labels import labels_of, rows_of
from smidgen.sampling.config import SamplingConfig
from smidgen.training.config import RunConfig, TrainingConfig
from tests.tiny.bases import KNOWN_CLASSES, law_base, tiny_base
from tests.tiny.images import write_photos

SHORT = {"steps": 2, "batch_size": 4, "validation_share": 0.2, "trackers": ()}
FROZEN = {**SHORT, "progress": False, "train_labels": False}
OWN = ("cat", "ant")  # of ant, bee, cat: neither all of them nor in that order


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    return write_photos(tmp_path / "photos", OWN)


def told(network, shown):
    """Puts the labels that the network is given into `shown`."""

    def note(module, arguments):
        shown.append(arguments[2].clone())

    return network.register_forward_pre_hook(note)


@pytest.mark.parametrize(
    ("names", "known", "rows"),
    [
        (("cat", "ant"), ("ant", "bee", "cat"), [2, 0]),
        (("crane", "kite", "crane"), ("crane", "kite", "crane"), [0, 1, 2]),  # two have one name
        (("tench", "goldfish"), ("0", "1"), [0, 1]),  # a base without names of its classes
        (("1", "0"), ("0", "1"), [1, 0]),
    ],
)
def test_a_class_has_the_row_of_its_name_or_of_its_place(names, known, rows):
    assert rows_of(names, known, "base") == rows


def test_a_name_that_two_classes_of_the_base_have_is_refused():
    with pytest.raises(UsageError, match='several classes called "crane"'):
        rows_of(("crane",), ("crane", "kite", "crane"), "base")


def test_fewer_classes_than_a_base_without_names_has_are_refused():
    with pytest.raises(UsageError, match="tench"):
        rows_of(("tench",), ("0", "1"), "base")


@pytest.mark.parametrize("method", ["difffit", "full", "vpt", "difffit+lora"])
def test_the_delta_has_no_table_and_the_base_is_told_its_own_labels(photos, tmp_path, method):
    base, shown = tiny_base(), []
    hook = told(base.denoiser, shown)
    delta = smidgen.train(
        base, photos, method=method, output=tmp_path / "run", **FROZEN, label_dropout=0.5
    )
    hook.remove()
    assert "label_table" not in delta.edits
    assert delta.provenance.classes == ("ant", "cat")
    rows = {KNOWN_CLASSES.index(name) for name in OWN} | {base.null_label}
    assert set(torch.cat(shown).tolist()) == rows
    assert tomllib.loads((tmp_path / "run" / RECIPE).read_text())["train_labels"] is False
    header = read_header(tmp_path / "run" / "delta.safetensors")
    assert header["training"]["settings"]["train_labels"] is False
    with pytest.raises(UsageError, match="train_labels false -> true"):
        smidgen.train(
            tiny_base(), photos, method=method, output=tmp_path / "run", **SHORT, label_dropout=0.5
        )


def test_its_classes_are_drawn_by_the_labels_of_the_base(photos, tmp_path):
    delta = smidgen.train(tiny_base(), photos, output=tmp_path / "run", **FROZEN)
    base, shown = tiny_base(), []
    hook = told(base.denoiser, shown)
    labels = labels_of(base, delta)
    condition = labels.conditions(torch.tensor([0, 1, labels.null]))
    assert (labels.names, condition["labels"].tolist()) == (("ant", "cat"), [0, 2, 3])
    smidgen.sample(base, delta=delta, classes="cat", num_images=1, steps=1, guidance=4)
    hook.remove()
    assert set(torch.cat(shown).tolist()) == {2, base.null_label}
    with pytest.raises(UsageError, match='unknown class "bee"'):
        smidgen.sample(base, delta=delta, classes="bee", num_images=1)
    # away from the base alone, of its own null label
    for classes in ("cat", "ant"):
        smidgen.sample(base, delta=delta, classes=classes, steps=1, guidance_kind="domain")
    sampling = SamplingConfig(num_images=2, steps=1)
    result = smidgen.evaluate(
        tmp_path / "run", photos, base=base, sampling=sampling, features="glyphs"
    )
    assert result["protocol"]["class_balance"]["num_classes"] == 2


def test_a_folded_base_keeps_its_table_and_all_its_classes(photos, tmp_path):
    base = tiny_base()
    assert isinstance(base.denoiser, DiT)
    delta = smidgen.train(base, photos, output=tmp_path / "run", **FROZEN)
    output = smidgen.fold(base, delta, format="dit", output=tmp_path / "folded.pt")
    state = torch.load(output, weights_only=True)
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(state[table], base.denoiser.state_dict()[table])


def test_classes_that_are_not_the_base_s_are_refused_in_a_line_and_by_the_dry_run(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    photos = write_photos(tmp_path / "photos", ("ant", "dog", "elk"))
    words = r'"dog" is no class of base "tiny-0" \(nor are 1 others\).* \(ant, bee, cat, \.\.\.\)'
    with pytest.raises(UsageError, match=words):
        smidgen.train(tiny_base(), photos, output=tmp_path / "run", **FROZEN)
    config = RunConfig(
        data=photos,
        output=tmp_path / "run",
        training=TrainingConfig(**SHORT, train_labels=False),
    )
    facts = plan_run("glyphs", config, given={})
    assert '"ant" is no class of base "glyphs" (nor are 2 others)' in facts["refusal"]
    assert facts["num_classes"] == 62


def test_it_goes_on_where_it_stopped_and_begins_from_a_delta_without_a_table(photos, tmp_path):
    for steps in (1, 2):
        parts = smidgen.train(
            tiny_base(), photos, output=tmp_path / "parts", **FROZEN | {"steps": steps}
        )
    whole = smidgen.train(tiny_base(), photos, output=tmp_path / "whole", **FROZEN)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    init = tmp_path / "whole" / "delta.safetensors"
    smidgen.train(tiny_base(), photos, init=init, output=tmp_path / "more", **FROZEN)
    begun = smidgen.train(
        tiny_base(), photos, init=init, output=tmp_path / "table", **SHORT, progress=False
    )
    assert "label_table" in begun.edits
    with pytest.raises(UsageError, match="init has a label table of its own"):
        smidgen.train(
            tiny_base(),
            photos,
            init=tmp_path / "table" / "delta.safetensors",
            output=tmp_path / "odd",
            **FROZEN,
        )
    assert Delta.load(init).provenance.classes == ("ant", "cat")


def test_a_base_that_reads_prompts_has_no_table_to_keep(photos, tmp_path):
    with pytest.raises(UsageError, match="train_labels is of no use to base"):
        smidgen.train(law_base("unet"), photos, output=tmp_path / "run", **FROZEN)
