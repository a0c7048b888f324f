"""A server that serves only what passed the gate."""

import httpx

import smidgen
from tests.library.results import write_result
from tests.serving.serving import fitting, listening, write_library
from tests.tiny.bases import tiny_base


def names(client):
    return [model["id"] for model in client.get("/v1/models").json()["data"]][1:]  # but the base


def ask(client, model):
    body = {"model": model, "prompt": "bee", "steps": 2}
    return client.post("/v1/images/generations", json=body)


def refused(client, model):
    answer = ask(client, model)
    assert answer.status_code == 404, answer.text
    return answer.json()["error"]["message"]


def test_it_serves_what_passed_the_gate_as_long_as_it_is_the_same(tmp_path, caplog):
    base = tiny_base()
    folder = write_library(tmp_path / "deltas", base)
    write_result(folder / "greek" / "delta.safetensors", {"fd": 10.0})
    write_result(folder / "thai.safetensors", {"fd": 30.0})
    smidgen.gate(folder, require="fd=20")
    stopped = "has not passed the gate of this server"
    with listening(base, folder, gated=True) as address, httpx.Client(base_url=address) as client:
        assert names(client) == ["greek"]
        assert "the gate refused it: fd is 30.00; expected at most 20.00" in caplog.text
        assert "lora.safetensors is not served: the gate refused it: there is no" in caplog.text
        assert stopped in refused(client, "thai")
        assert stopped in refused(client, "greek:0.5+thai:0.5")
        assert ask(client, "greek").status_code == 200

        smidgen.gate(folder / "thai.safetensors", require="fd=40")  # no restart is needed
        assert names(client) == ["greek", "thai"]
        fitting(base, "difffit", 9).save(folder / "greek" / "delta.safetensors")
        assert stopped in refused(client, "greek")
        (folder / "thai.gate.json").unlink()
        assert stopped in refused(client, "thai")
        (folder / "thai.safetensors").unlink()
        assert 'no model "thai"' in refused(client, "thai")
        assert names(client) == []


def test_without_that_the_gate_is_not_asked(tmp_path):
    base = tiny_base()
    folder = write_library(tmp_path / "deltas", base)
    smidgen.gate(folder, require="fd=20")
    with listening(base, folder) as address, httpx.Client(base_url=address) as client:
        assert names(client) == ["greek", "lora", "thai"]
