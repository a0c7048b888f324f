"""One evaluation as a document: the numbers, what they depend on, and warnings."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smidgen.data.folder import scan
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation import estimate, features
from smidgen.evaluation.kernels import kid
from smidgen.evaluation.metrics import frechet_distance
from smidgen.evaluation.neighbours import prdc
from smidgen.evaluation.reference import folder_statistics
from smidgen.evaluation.statistics import write_statistics
from tests.evaluation.calls import evaluate, measure_batches
from tests.launch import finish, start

from .conftest import COLOURS, class_folder, colour_extractor, write_image


def samples(root, intended, shown):
    """A flat folder as sampling writes it."""
    for number, (name, colour) in enumerate(zip(intended, shown, strict=True)):
        write_image(root / f"{number:06d}-{name}.png", colour, seed=500 + number)
    return root


def test_a_folder_against_itself_has_distance_zero_and_full_agreement(tmp_path):
    folder = class_folder(tmp_path / "images", 5)
    document = evaluate(folder, folder, features="colours")
    assert document["metrics"]["fd"] == pytest.approx(0, abs=1e-9)
    assert document["metrics"]["class_agreement"] == 1
    assert document["baselines"]["class_agreement_by_chance"] == pytest.approx(1 / 3)
    assert document["baselines"]["class_agreement_of_reference"] == 1
    (warning,) = document["warnings"]
    assert "under 10,000" in warning
    json.dumps(document)


def test_distance_is_the_metric_of_the_two_folders(tmp_path):
    first, second = class_folder(tmp_path / "a", 5), class_folder(tmp_path / "b", 4, seed=1)
    a, b = (folder_statistics(path, colour_extractor()).gaussian for path in (first, second))
    expected = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert evaluate(first, second, features="colours")["metrics"]["fd"] == expected
    assert expected > 0


def test_agreement_counts_the_images_that_show_what_their_name_says(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    folder = samples(
        tmp_path / "flat", ["red", "green", "red", "blue"], ["red", "red", "red", "blue"]
    )
    document = evaluate(folder, reference, features="colours")
    assert document["metrics"]["class_agreement"] == 0.75
    assert document["agreement_by_class"] == {"blue": 1, "green": 0, "red": 1}


def test_of_heads_that_share_names_the_one_of_the_reference_judges(tmp_path, monkeypatch):
    """Drawn are two classes of three; a smaller head has these two as well."""

    def two_heads(device):
        whole = colour_extractor()

        def run(images):
            values, logits = whole.run(images)
            return values, {**logits, "pair": -logits["colours"][:, :2]}  # always wrong

        return dataclasses.replace(whole, heads={**whole.heads, "pair": COLOURS[:2]}, run=run)

    monkeypatch.setattr(features, "EXTRACTORS", {"colours": two_heads})
    folder = samples(tmp_path / "flat", ["red", "green"], ["red", "green"])
    document = evaluate(folder, class_folder(tmp_path / "reference", 5), features="colours")
    assert (document["head"], document["metrics"]["class_agreement"]) == ("colours", 1)
    assert document["baselines"]["class_agreement_by_chance"] == pytest.approx(1 / 3)
    assert document["baselines"]["class_agreement_of_reference"] == 1


def test_the_sampling_record_goes_before_the_file_name_and_into_the_protocol(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    folder = samples(tmp_path / "flat", ["x_y", "red"], ["green", "red"])
    record = {"settings": {"guidance": 4.0}, "images": {"000000-x_y.png": "green"}}
    (folder / "sample.json").write_text(json.dumps(record))
    document = evaluate(folder, reference, features="colours")
    assert document["metrics"]["class_agreement"] == 1
    assert document["protocol"]["sampling"] == {"guidance": 4.0}
    assert not any("not finish" in text or "skip" in text for text in document["warnings"])
    (folder / "sample.json").write_text(json.dumps({**record, "finished": False}))
    warnings = evaluate(folder, reference, features="colours")["warnings"]
    assert any("did not finish" in warning for warning in warnings)
    (folder / "sample.json").write_text("{")
    with pytest.raises(SmidgenError, match="damaged"):
        evaluate(folder, reference, features="colours")


def test_agreement_is_unknown_with_a_warning_where_no_head_knows_the_classes(tmp_path):
    flat = tmp_path / "reference"  # without classes, so that any may be compared with it
    for number in range(8):
        write_image(flat / f"{number}.png", "red", seed=number)
    document = evaluate(
        samples(tmp_path / "flat", ["red", "mauve"], ["red", "green"]), flat, features="colours"
    )
    assert document["metrics"]["class_agreement"] is None
    assert document["metrics"]["fd"] > 0
    assert any("no head" in warning for warning in document["warnings"])
    assert any('have not seen "mauve"' in warning for warning in document["warnings"])
    assert document["notes"]["fd"][0] == "features have not seen this domain"


@pytest.mark.parametrize("recorded", [True, False])
def test_a_class_that_the_reference_lacks_is_named(recorded, tmp_path):
    reference = class_folder(tmp_path / "reference", 2)
    folder = samples(tmp_path / "flat", ["red", "mauve"], ["red", "green"])
    if recorded:
        images = {"000000-red.png": "mauve", "000001-mauve.png": "mauve"}
        (folder / "sample.json").write_text(json.dumps({"images": images}))
    with pytest.raises(SmidgenError, match=r'reference has no class "mauve"'):
        evaluate(folder, reference, features="colours")


def test_folders_that_are_no_classes_leave_the_classes_unknown(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    for number in range(8):  # as programs that number their folders write them
        write_image(tmp_path / "theirs" / f"0000{number % 2}" / f"{number}.png", "red", number)
    document = evaluate(tmp_path / "theirs", reference, features="colours")
    assert document["metrics"]["fd"] > 0
    assert document["metrics"]["class_agreement"] is None
    assert document["protocol"]["class_balance"] == {"kind": "unknown"}
    assert any("none of the reference's 3 classes" in text for text in document["warnings"])


def test_agreement_is_unknown_where_nothing_names_the_classes(tmp_path):
    write_image(tmp_path / "flat" / "photo.png", "red", seed=1)
    reference = class_folder(tmp_path / "reference", 5)
    document = evaluate(tmp_path / "flat", reference, features="colours")
    assert document["metrics"]["class_agreement"] is None
    assert any("nothing says" in warning for warning in document["warnings"])


def test_fewer_images_than_dimensions_warn_and_still_give_the_number(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    for count in (1, 6):
        folder = samples(tmp_path / f"few-{count}", ["red"] * count, ["red"] * count)
        document = evaluate(folder, reference, features="colours")
        assert document["metrics"]["fd"] > 0
        assert any(f"{count} images for 6 feature" in text for text in document["warnings"])
    enough = evaluate(reference, reference, features="colours")["warnings"]
    assert not any("dimensions" in text for text in enough)


def test_statistics_in_a_file_give_the_folders_numbers(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    folder = samples(tmp_path / "flat", COLOURS, COLOURS)
    path = tmp_path / "reference.npz"
    write_statistics(folder_statistics(reference, colour_extractor(), keep_features=True), path)
    from_folder = evaluate(folder, reference, features="colours")
    from_file = evaluate(folder, path, features="colours")
    assert from_file["metrics"] == from_folder["metrics"]
    assert from_file["baselines"] == from_folder["baselines"]
    for name in ("num_reference", "reference_identity"):
        assert from_file["protocol"][name] == from_folder["protocol"][name]


def test_the_protocol_says_what_the_numbers_depend_on(tmp_path):
    folder = class_folder(tmp_path / "images", 3)
    protocol = evaluate(folder, folder, features="colours")["protocol"]
    assert protocol["features"] == "colours"
    assert protocol["features_sha256"] == "colours-1"
    assert (protocol["num_images"], protocol["num_reference"]) == (9, 9)
    assert protocol["resize"] == "crop"
    assert protocol["class_balance"] == {
        **{"kind": "even", "num_classes": 3, "min_per_class": 3, "max_per_class": 3}
    }
    assert protocol["metric_settings"]["kid"]["subset_size"] == 9
    assert protocol["images_identity"] == protocol["reference_identity"]
    assert "torch" in protocol["versions"]


def test_what_cannot_be_read_is_counted_and_named(tmp_path):
    folder = class_folder(tmp_path / "images", 3)
    (folder / "red" / "torn.png").write_bytes((folder / "red" / "0.png").read_bytes()[:60])
    document = evaluate(folder, folder, features="colours")
    assert [entry["file"] for entry in document["skipped"]] == ["red/torn.png"]
    assert any("1 of the files" in warning for warning in document["warnings"])


@pytest.mark.parametrize(
    "wrong", ["images", "reference", "features", "file", "repeated", "metric", "text", "setting"]
)
def test_misuse_is_refused(wrong, tmp_path):
    folder = class_folder(tmp_path / "images", 2)
    (tmp_path / "notes.txt").write_text("x")
    arguments = {"images": folder, "reference": folder, "features": "colours"}
    change = {
        "images": {"images": tmp_path / "none"},
        "reference": {"reference": tmp_path / "none"},
        "features": {"features": "inceptoin"},
        "repeated": {"features": "colours,colours"},
        "metric": {"metrics": ["fid"]},
        "text": {"metrics": ["clip_t"]},
        "setting": {"batchsize": 3},
        "file": {"reference": tmp_path / "notes.txt"},
    }
    with pytest.raises(UsageError):
        evaluate(**{**arguments, **change[wrong]})


def read_features(folder: Path) -> torch.Tensor:
    """All features of a folder, computed here."""
    extractor = colour_extractor()
    images = [extractor.prepare(np.asarray(Image.open(f.path))) for f in scan(folder).files]
    return extractor.read(torch.stack(images))[0]


def test_metrics_of_features_are_those_of_the_two_folders(tmp_path):
    first, second = class_folder(tmp_path / "a", 5), class_folder(tmp_path / "b", 4, seed=1)
    names = ["kid", "precision", "recall", "density", "coverage"]
    for batch_size in (4, 64):
        document = evaluate(first, second, features="colours", metrics=names, batch_size=batch_size)
        a, b = read_features(first), read_features(second)
        drawn = kid(a, b).value
        assert document["metrics"]["kid"] == drawn
        assert "kid" not in document["notes"]  # subsets of 12 of 15
        expected = prdc(a, b).value
        assert {name: document["metrics"][name] for name in expected} == expected
        assert "fd" not in document["metrics"]


def test_a_reference_without_features_leaves_kid_unknown_and_refuses_it_when_asked(tmp_path):
    folder = class_folder(tmp_path / "images", 5)
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6))
    document = evaluate(folder, path, features="colours")
    assert document["metrics"]["kid"] is None
    assert document["metrics"]["fd"] > 0
    assert any("holds no features" in warning for warning in document["warnings"])
    assert document["protocol"]["num_reference"] is None
    with pytest.raises(SmidgenError, match="kid unknown: the reference holds no features"):
        evaluate(folder, path, features="colours", metrics=["kid"])


def test_several_features_have_a_block_each_from_one_pass(tmp_path, monkeypatch):
    first, second = class_folder(tmp_path / "a", 5), class_folder(tmp_path / "b", 4, seed=1)
    calls = []
    table = {
        "colours": lambda device: colour_extractor(on_run=lambda: calls.append("colours")),
        "twin": lambda device: dataclasses.replace(
            colour_extractor("colours-2"), name="twin", domain=None
        ),
    }
    monkeypatch.setattr(features, "EXTRACTORS", table)
    both = evaluate(first, second, features="colours,twin")
    assert len(calls) == 2  # the reference and the images, each once
    alone = evaluate(first, second, features="twin")
    assert both["by_features"]["twin"]["metrics"] == alone["metrics"]
    assert both["metrics"] == both["by_features"]["colours"]["metrics"]
    assert both["protocol"]["features"] == "colours"
    assert any(text.startswith("twin: 15 images: under 10,000") for text in both["warnings"])


def test_kid_comes_first_where_images_are_few(tmp_path):
    folder = class_folder(tmp_path / "images", 5)
    assert list(evaluate(folder, folder, features="colours")["metrics"])[:2] == ["kid", "fd"]


def test_images_are_compared_with_the_text_of_their_class(tmp_path, monkeypatch):
    directions = {
        f"a picture of {name}": row for name, row in zip(COLOURS, torch.eye(6), strict=False)
    }
    clip = dataclasses.replace(
        colour_extractor(),
        name="clip-b32",
        text=lambda texts: torch.stack([directions[text] for text in texts]),
    )
    monkeypatch.setattr(features, "EXTRACTORS", {"clip-b32": lambda device: clip})
    folder = class_folder(tmp_path / "images", 5)
    document = evaluate(
        folder,
        folder,
        features="clip-b32",
        metrics=["clip_t", "clip_i"],
        prompt="a picture of {}",
        batch_size=4,
    )
    values = read_features(folder).double()
    unit = values / values.norm(dim=1, keepdim=True)
    label = torch.tensor([COLOURS.index(file.path.parent.name) for file in scan(folder).files])
    expected = unit[torch.arange(15), label].mean()
    assert document["metrics"]["clip_t"] == pytest.approx(float(expected), rel=1e-9)
    assert document["metrics"]["clip_i"] == pytest.approx(float((unit @ unit.T).mean()), rel=1e-9)
    assert document["protocol"]["metric_settings"]["clip_t"] == {"prompt": "a picture of {}"}


def drawn(count: int, batch_size: int):
    """Batches as a sampler gives them, classes in turn."""
    for first in range(0, count, batch_size):
        numbers = range(first, min(first + batch_size, count))
        images = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), np.uint8) for n in numbers]
        yield first, np.stack(images), [COLOURS[number % 3] for number in numbers]


def test_batches_from_a_sampler_give_what_their_files_give(tmp_path):
    reference = class_folder(tmp_path / "reference", 5)
    sampling = {"steps": 50, "seed": 0}
    record = {"settings": sampling, "images": {}}
    for first, images, names in drawn(20, 6):
        for number, (image, name) in enumerate(zip(images, names, strict=True), first):
            record["images"][f"{number:06d}-{name}.png"] = name
            (tmp_path / "files").mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / "files" / f"{number:06d}-{name}.png")
    (tmp_path / "files" / "sample.json").write_text(json.dumps(record))
    from_files = evaluate(tmp_path / "files", reference, features="colours")
    streamed = measure_batches(drawn(20, 7), reference, sampling=sampling, features="colours")
    assert streamed["metrics"] == from_files["metrics"]
    assert streamed["agreement_by_class"] == from_files["agreement_by_class"]
    for name in ("sampling", "class_balance", "num_images", "reference_identity"):
        assert streamed["protocol"][name] == from_files["protocol"][name]
    assert streamed["protocol"]["class_balance"]["kind"] == "even"  # 7, 7, 6
    other = measure_batches(drawn(19, 7), reference, sampling=sampling, features="colours")
    identities = [one["protocol"]["images_identity"] for one in (streamed, other)]
    assert identities[0] != identities[1]


def test_the_time_that_drawing_takes_is_told_after_its_first_batch(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(estimate, "LONG", -1.0)
    given = {"sampling": {}, "features": "colours", "num_images": 20}
    with caplog.at_level("INFO", logger="smidgen"):
        measure_batches(drawn(20, 7), class_folder(tmp_path / "reference", 2), **given)
    (line,) = caplog.messages
    assert line.startswith("drawing 20 images will take about")


def test_paths_may_be_text(tmp_path):
    """As case F17."""
    folder = class_folder(tmp_path / "images", 3)
    cache = tmp_path / "another-cache"
    document = evaluate(str(folder), str(folder), features="colours", cache_dir=str(cache))
    assert document["protocol"]["num_images"] == 9
    assert list(cache.rglob("*.npz"))


def test_a_class_that_the_reference_lacks_stops_before_the_first_batch(tmp_path):
    reference = class_folder(tmp_path / "reference", 2)

    def never():
        raise AssertionError("nothing may be drawn")
        yield

    with pytest.raises(SmidgenError, match='no class "mauve"'):
        measure_batches(
            never(), reference, sampling={}, classes=["red", "mauve"], features="colours"
        )


def test_nothing_drawn_and_no_images_are_refused(tmp_path):
    reference = class_folder(tmp_path / "reference", 2)
    with pytest.raises(SmidgenError, match="no usable image in samples"):
        measure_batches(iter(()), reference, sampling={}, features="colours")
    for wrong in (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8)):
        with pytest.raises(SmidgenError, match="expected uint8"):
            measure_batches([(0, wrong, None)], reference, sampling={}, features="colours")


def test_arrays_of_guided_diffusion_are_images_and_references(tmp_path):
    images = np.concatenate([images for _, images, _ in drawn(20, 6)])
    np.savez(tmp_path / "samples.npz", arr_0=images)
    for number, image in enumerate(images):
        (tmp_path / "files").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "files" / f"{number:02d}.png")
    reference = class_folder(tmp_path / "reference", 5)
    for way in (("samples.npz", "reference"), ("reference", "samples.npz")):
        from_arrays = evaluate(*(tmp_path / name for name in way), features="colours")
        files = [tmp_path / ("files" if name == "samples.npz" else name) for name in way]
        from_files = evaluate(*files, features="colours")
        assert from_arrays["metrics"] == from_files["metrics"]
        assert from_arrays["protocol"]["num_images"] == from_files["protocol"]["num_images"]
    assert reference.is_dir()


WORKER = """
import json, sys
from smidgen import processes
from smidgen.evaluation import features
from tests.evaluation.calls import evaluate, measure_batches
from tests.evaluation.conftest import colour_extractor
from tests.evaluation.test_run import drawn

features.EXTRACTORS = {"colours": lambda device: colour_extractor()}
folder, reference, output = sys.argv[1:]
found = [evaluate(folder, reference, features="colours", batch_size=2)]
mine = list(drawn(20, 6))[processes.rank() :: processes.world_size()]
found.append(measure_batches(mine, reference, sampling={}, features="colours"))
if processes.is_main():
    open(output, "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_write_the_document_of_one(tmp_path, monkeypatch):
    folder, reference = class_folder(tmp_path / "a", 3), class_folder(tmp_path / "b", 4, seed=1)
    (folder / "red" / "torn.png").write_bytes((folder / "red" / "0.png").read_bytes()[:60])
    expected = [
        evaluate(folder, reference, features="colours", batch_size=2),
        measure_batches(drawn(20, 6), reference, sampling={}, features="colours"),
    ]
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "two"))
    places = [str(path) for path in (folder, reference, tmp_path / "out.json")]
    for code, _, error in finish(start(["-c", WORKER, *places], 2)):
        assert code == 0, error
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(expected))


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "text",
    [
        *("[1, 2]", "7", '{"images": ["a.png"]}', '{"settings": "none"}', '{"images": {"a": 5}}'),
        *('{"settings": {"steps": "50"}}', '{"settings": {"guidance": 1e999}}', '{"finished": 0}'),
        nested(100_000),  # case A12
        f'{{"settings": {{"more": {nested(300)}}}}}',
    ],
)
def test_a_sample_json_of_another_program_is_named(text, tmp_path):
    reference = class_folder(tmp_path / "reference", 2)
    folder = samples(tmp_path / "flat", ["red"], ["red"])
    (folder / "sample.json").write_text(text)
    with pytest.raises(
        SmidgenError, match=r"sample\.json is no record of smidgen sample"
    ) as caught:
        evaluate(folder, reference, features="colours")
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_the_images_is_told_before_they_are_read(tmp_path, monkeypatch):
    calls = []
    extractor = colour_extractor(on_run=lambda: calls.append(1))
    monkeypatch.setattr(features, "EXTRACTORS", {"colours": lambda device: extractor})
    reference = class_folder(tmp_path / "reference", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SmidgenError, match="no usable image"):
        evaluate(tmp_path / "empty", reference, features="colours")
    assert calls == []
    folder = class_folder(tmp_path / "images", 2)
    write_image(folder / "violet" / "0.png", "red", seed=1)
    with pytest.raises(SmidgenError, match='no class "violet"'):
        evaluate(folder, reference, features="colours")
    assert len(calls) == 1  # the reference


def test_a_split_of_a_file_is_refused(tmp_path):
    folder = class_folder(tmp_path / "images", 2)
    path = tmp_path / "reference.npz"
    write_statistics(folder_statistics(folder, colour_extractor()), path)
    with pytest.raises(UsageError, match="without splits"):
        evaluate(folder, path, features="colours", split="train")
