"""Every code block of README.md and docs/ is right as far as can be told without running it:
commands go through the real parser and name recipes that are there, Python compiles and calls what
there is with arguments that it takes. test_pages.py runs what can be run here.
"""

import pytest

from tests.documentation.pages import PAGES, ROOT, Block, blocks_of
from tests.documentation.reading import read, read_command, read_python

# by page and the first words of the block: why nobody reads it
PASSED_OVER = {
    ("docs/serving.md", "docker build"): "Docker; tests/serving/test_container.py reads its file",
    ("docs/add-a-method.md", '"""Late'): "run by tests/methods/test_documented_method.py",
    ("docs/sampling.md", "smidgen sample --like"): "of a picture that is there once test_pages ran",
    ("docs/tutorials/change-pictures.md", "smidgen sample --like"): "the same",
}
# what a reader is told to have
FILES = ("DiT-XL-2-256x256.pt", "VIRTUAL_imagenet256_labeled.npz")
FOLDERS = ("stable-diffusion-v1-5", "stable-diffusion-v1-4", "sd-folder", "FOLDER")
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def reason(block: Block) -> str | None:
    """Why a block is passed over."""
    for (page, words), why in PASSED_OVER.items():
        if block.page == page and block.text.startswith(words):
            return why
    return None


@pytest.fixture(autouse=True)
def _in_a_copy(tmp_path, monkeypatch):
    """A folder that has the recipes, as the repository's root, and places for bases."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in FILES:
        (tmp_path / name).touch()
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
def test_the_blocks_of_a_page_are_right(page, tmp_path):
    for block in blocks_of(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        if reason(block) is None:
            read(block)


def test_what_is_passed_over_is_there():
    passed = [block for block in BLOCKS if reason(block) is not None]
    assert len(passed) == len(PASSED_OVER)


def test_no_fence_of_a_page_is_overlooked():
    for page in PAGES:
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        fences = [line for line in lines if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(blocks_of(page)), page


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("smidgen tran --base glyphs", "no verb tran"),
        ("smidgen sample --base glyphs --stepz 3 --output a", "--steps"),
        ("smidgen sample --base glyphs --steps three --output a", "--steps"),
        ("smidgen train recipes/none.toml --data a --output b", "none.toml"),
        ("torchrun --nproc-per-node 2 -m smidgen.cli train --dta a", "--data"),
        ("python -m bench.nothing", "no module"),
        ("make nonsense", "no nonsense"),
        ("""curl x -d '{"model": "a", "n": 0}'""", "n"),
        ("rm -r somewhere", "nobody can tell"),
    ],
)
def test_a_wrong_command_is_found(command, message):
    (words,) = Block("page", "", "sh", "", command).commands()
    with pytest.raises(Exception, match=message):
        read_command(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smidgen.sampel(base)", "sampel"),
        ("smidgen.sample(base, delta, 3)", "too many positional"),
        ("smidgen.sample(base, stepz=3)", "stepz"),
        ("smidgen.train(base, 'photos/', stepz=3)", "stepz"),
        ("from smidgen.core.arithmetic import halved", "halved"),
        ("smidgen.evaluate('a', refrence='b')", "refrence"),
    ],
)
def test_wrong_python_is_found(text, message):
    with pytest.raises(Exception, match=message):
        read_python(text)
