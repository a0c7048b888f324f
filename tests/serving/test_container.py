"""The Dockerfile, as far as can be told without Docker: what it copies is there and passes
.dockerignore, and the server takes the arguments that it is started with.
"""

import json
import re
import tomllib
from pathlib import Path

import pytest

from smidgen.errors import UsageError
from smidgen.serving.config import API_KEY
from tests.documentation.reading import read_command

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def steps() -> list[tuple[str, str]]:
    """Instruction and its rest, in order, without comments."""
    plain = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ")
    return [(one[1], one[2]) for one in re.finditer(r"^([A-Z]+) (.*)$", plain, re.MULTILINE)]


def one_step(name: str) -> str:
    (rest,) = [rest for step, rest in steps() if step == name]
    return rest


def test_what_is_copied_is_there_and_is_enough_to_build_the_package():
    copied = [word for step, rest in steps() if step == "COPY" for word in rest.split()[:-1]]
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in let_in
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= set(copied)


@pytest.fixture
def container(tmp_path, monkeypatch):
    """The command that it runs, with a folder of deltas that is there."""
    monkeypatch.setenv(API_KEY, "a-key-of-sixteen-or-more")
    words = [*json.loads(one_step("ENTRYPOINT")), *json.loads(one_step("CMD"))]
    return [str(tmp_path) if word == one_step("VOLUME") else word for word in words]


def test_the_server_takes_the_arguments_and_listens_where_it_is_looked_for(container):
    config = read_command(container)["serving"]
    assert str(config.port) == one_step("EXPOSE")
    assert f"http://127.0.0.1:{config.port}/health" in one_step("HEALTHCHECK")
    assert not config.is_local


def test_without_a_key_it_does_not_start(container):
    config = read_command(container)["serving"]
    with pytest.raises(UsageError, match=API_KEY):
        config.check_key(None)


def test_nothing_runs_as_root_and_no_key_is_written_down():
    order = [step for step, _ in steps()]
    assert one_step("USER") not in ("root", "0")
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert not [rest for step, rest in steps() if step in ("ENV", "ARG") and API_KEY in rest]
