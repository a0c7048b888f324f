"""What a base forgets: its own classes, drawn with a delta's edits but for the label table."""

import pytest

from tests.tiny.bases import KNOWN_CLASSES
from tests.tiny.images import write_photos


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images of the base's own classes."""
    return write_photos(tmp_path_factory.mktemp("source") / "own", KNOWN_CLASSES, per_class=3)


def test_a_study_measures_the_sources_classes_before_and_after(
    smidgen, base, photos, source, tmp_path
):
    recipe = tmp_path / "forgetting.toml"
    recipe.write_text(
        f'base = "{base}"\ndata = "{photos}"\nreference = "{source}"\n'
        f'output = "{tmp_path / "study"}"\nsteps = 2\nbatch_size = 4\nlr = 0.5\n'
        "ema_decay = 0.0\nvalidation_share = 0\ntrackers = []\n"
        "[study]\nmetric = 'fd'\n[study.factors]\nmethod = ['difffit', 'full']\n"
        "[study.factors.edits]\nbefore = { 'sampling.edits' = 'base' }\n"
        "after = { 'sampling.edits' = '-table' }\n"
        "[study.sampling]\nsteps = 2\nnum_images = 9\n[study.evaluation]\nfeatures = 'glyphs'\n"
    )
    assert smidgen("study", "run", recipe, "--json").document["states"] == {"finished": 4}
    found = smidgen("study", "analyse", recipe, "--json").document
    means = {arm["arm"]: arm["mean"] for arm in found["arms"]}
    before = [mean for name, mean in means.items() if "before" in name]
    after = [mean for name, mean in means.items() if "after" in name]
    assert before[0] == pytest.approx(before[1])  # the base is the same, whatever was trained
    assert all(abs(one - before[0]) > 1e-3 for one in after)


def test_samples_of_a_part_of_a_delta_have_the_bases_classes(smidgen, base, trained, tmp_path):
    arguments = ["sample", "--base", base, "--delta", trained, "--steps", "1"]
    own = smidgen(*arguments, "--edits", "-table", "--output", tmp_path / "own", "--json")
    assert own.code == 0, own.err
    assert tuple(own.document["images"].values()) == KNOWN_CLASSES
    assert own.document["settings"]["edits"] == "-table"
    named = smidgen(
        *arguments, "--edits", "-table", "--classes", "ant", "--output", tmp_path / "ant"
    )
    assert named.code == 0, named.err
    wrong = smidgen(*arguments, "--edits", "-tabel", "--output", tmp_path / "wrong")
    assert (wrong.code, len(wrong.complaint)) == (2, 1)
    assert '"tabel" means none of this delta; did you mean "table"?' in wrong.err
