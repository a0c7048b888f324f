"""Shapes annotated in the source are enforced while the tests run, and one thread computes: the
networks are too small for several, which on a loaded machine wait for each other most of the time.
"""

import gc
import os
import shutil
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import jaxtyping
import pytest
from jaxtyping import install_import_hook

CORE = ("arithmetic", "bank", "bodies", "bypass", "edit", "edits", "fingerprint", "fold", "mixed")
METRICS = ("metrics", "kernels", "neighbours", "similarity")
CHECKED = (
    *(f"core.{name}" for name in (*CORE, "tokens")),  # those with shapes: checking hooks is slow
    *("diffusion", "models"),
    *(f"evaluation.{name}" for name in METRICS),
)

install_import_hook([f"smidgen.{name}" for name in CHECKED], "beartype.beartype")


def pytest_collection_finish() -> None:
    """What is imported by then stays; no later search for garbage goes through it."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache_of_this_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's cache, nor that of a worker beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMIDGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """The shape checks of the tests are no part of the package, and dynamo cannot trace them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A Chromium that a test may open pages in. Of one module: while it is open a loop of asyncio
    runs in this thread, in which no other can.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
