"""A stand-in of the hub: the part of its API that pushing, pulling and listing use, with its status
codes and the headers by which its client tells errors apart. Repositories are in memory.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tests.answering import answering

WRITER, READER = "hf_writer", "hf_reader"  # tokens
STAMP = "2026-12-01T00:00:00.000Z"


@dataclass
class Repo:
    """Files by commit, the newest last; `gated` to all but the writer."""

    commits: list[tuple[str, dict[str, bytes]]]
    private: bool = False
    gated: bool = False

    @property
    def head(self) -> tuple[str, dict[str, bytes]]:
        return self.commits[-1]


@dataclass
class Hub:
    """What the hub has, and what it was asked: `served` are the files that were fetched whole or in
    part, `calls` the requests that change something.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # that are told in place of the true ones

    def put(self, name: str, files: dict[str, bytes], **facts: bool) -> None:
        """A repository as somebody else left it."""
        self.repos[name] = Repo([(_oid(name, files), files)], **facts)

    def files(self, name: str) -> dict[str, bytes]:
        """The newest files of a repository."""
        return self.repos[name].head[1]


def _oid(name: str, files: dict[str, bytes], parent: str = "") -> str:
    total = hashlib.sha1(f"{name}{parent}".encode())
    for path in sorted(files):
        total.update(path.encode() + files[path])
    return total.hexdigest()


def blob_of(content: bytes) -> str:
    """git's hash of a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def refused(status: int, code: str | None = None, message: str = "no") -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers)


def card_of(files: dict[str, bytes]) -> dict:
    text = files.get("README.md", b"").decode()
    return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}


def create_app(hub: Hub) -> FastAPI:
    app = FastAPI()

    def token(request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def find(request: Request, name: str, revision: str):
        """Files of a revision with its commit, or the refusal."""
        repo = hub.repos.get(name)
        if repo is None or (repo.private and token(request) not in (WRITER, READER)):
            return refused(404, "RepoNotFound", "Repository not found")
        if repo.gated and token(request) != WRITER:
            return refused(403, "GatedRepo", "Access to this model is restricted")
        for oid, files in repo.commits:
            if oid == revision:
                return oid, files
        if revision != "main":
            return refused(404, "RevisionNotFound", "Invalid rev id")
        return repo.head

    def info(name: str, oid: str, files: dict[str, bytes]) -> dict:
        card, repo = card_of(files), hub.repos[name]
        siblings = [
            {
                "rfilename": path,
                "size": hub.sizes.get(path, len(content)),
                "blobId": blob_of(content),
            }
            for path, content in files.items()
        ]
        return {
            **{"id": name, "modelId": name, "author": name.split("/")[0], "sha": oid},
            **{"private": repo.private, "gated": False, "lastModified": STAMP},
            **{"tags": card.get("tags", []), "cardData": card, "siblings": siblings},
        }

    def may_write(request: Request) -> Response | None:
        if token(request) == WRITER:
            return None
        if token(request) == READER:
            return refused(403, None, "you must use a write token")
        return refused(401, None, "Invalid credentials in Authorization header")

    @app.get("/api/models")
    def models(request: Request):
        asked = request.query_params
        found = [
            info(name, *repo.head)
            for name, repo in hub.repos.items()
            if not repo.private or token(request) in (WRITER, READER)
        ]
        found = [one for one in found if asked.get("author") in (None, one["author"])]
        return [one for one in found if set(asked.getlist("filter")) <= set(one["tags"])]

    @app.post("/api/validate-yaml")
    async def validate(request: Request):
        card = card_of({"README.md": (await request.json())["content"].encode()})
        if not isinstance(card.get("license", "mit"), str) or card.get("license") == "refused":
            return Response('"license" must be one of the known ones', 400)
        return {"errors": [], "warnings": []}

    @app.post("/api/repos/create")
    async def create(request: Request):
        if (no := may_write(request)) is not None:
            return no
        body = await request.json()
        name = f"{body['organization']}/{body['name']}"
        hub.calls.append(f"create {name}")
        if name in hub.repos:
            return refused(409, None, "You already created this model repo")
        private = body.get("visibility") == "private" or bool(body.get("private"))
        hub.put(name, {".gitattributes": b"*.safetensors filter=lfs"}, private=private)
        return {"url": f"{request.base_url}{name}"}

    @app.post("/api/models/{owner}/{name}/preupload/{revision}")
    async def preupload(request: Request, owner: str, name: str, revision: str):
        if (no := may_write(request)) is not None:
            return no
        held = hub.files(f"{owner}/{name}")
        return {
            "files": [
                {
                    **{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False},
                    "oid": blob_of(held[one["path"]]) if one["path"] in held else None,
                }
                for one in (await request.json())["files"]
            ]
        }

    @app.post("/api/models/{owner}/{name}/commit/{revision}")
    async def commit(request: Request, owner: str, name: str, revision: str):
        if (no := may_write(request)) is not None:
            return no
        repo = hub.repos[f"{owner}/{name}"]
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line]
        oid, files = repo.head
        hub.calls.append(f"commit {owner}/{name}")
        if lines[0]["value"].get("parentCommit", oid) != oid:
            return refused(412, None, "A commit has happened since")
        files = dict(files)
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[path]
        repo.commits.append((_oid(name, files, oid), files))
        url = f"{request.base_url}{owner}/{name}/commit/{repo.head[0]}"
        return {"success": True, "commitOid": repo.head[0], "commitUrl": url, "hookOutput": ""}

    @app.get("/api/models/{owner}/{name}")
    def main(request: Request, owner: str, name: str):
        return revision_of(request, owner, name, "main")

    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    def revision_of(request: Request, owner: str, name: str, revision: str):
        found = find(request, f"{owner}/{name}", revision)
        return found if isinstance(found, Response) else info(f"{owner}/{name}", *found)

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(request: Request, owner: str, name: str, revision: str, path: str):
        found = find(request, f"{owner}/{name}", revision)
        if isinstance(found, Response):
            return found
        oid, files = found
        if path not in files:
            return refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob_of(files[path])}"'}
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(files[path]))})
        hub.served.append(path)
        return Response(files[path], 200, headers, "application/octet-stream")

    return app


@contextlib.contextmanager
def listening(hub: Hub) -> Iterator[str]:
    """The address of a hub that answers until the end."""
    with answering(create_app(hub)) as address:
        yield address
