"""A model hub for the tests: the few calls that huggingface_hub makes, answered from memory on 127.0.0.1."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_of_ann"


class Hub(ThreadingHTTPServer):
    """Repositories {user/name: {commit: {file: content}}}, newest commit last; `private` ones are for ann alone."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.cut = ""  # of this file only half is sent, though all is announced
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Put files over those of the newest commit, and return the new one."""
        commits = self.repositories[name]
        files = {**(list(commits.values())[-1] if commits else {}), **files}
        commit = hashlib.sha1(repr((len(commits), sorted(files.items()))).encode()).hexdigest()
        commits[commit] = files
        return commit


class Answers(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object = None, status: int = 200, body: bytes | None = None, **headers: str) -> None:
        """Send a JSON value or bytes; to HEAD only their size."""
        body = json.dumps(content).encode() if body is None else body
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code)

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), urlsplit(self.path).path
        self.server.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in self.server.repositories:
                return self.answer({"url": f"{self.server.url}/{name}"}, 409)
            if not name.startswith("ann/"):
                return self.refuse(403, "Forbidden")
            self.server.repositories[name] = {}
            self.server.private |= {name} if wanted.get("private") or wanted.get("visibility") == "private" else set()
            return self.answer({"id": name, "url": f"{self.server.url}/{name}"})
        user, name, what, _ = path.removeprefix("/api/models/").split("/")
        if what == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        commit = self.server.commit(
            f"{user}/{name}", {file["path"]: base64.b64decode(file["content"]) for file in files}
        )
        return self.answer({"commitOid": commit, "commitUrl": f"{self.server.url}/{user}/{name}/commit/{commit}"})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        user, name, *rest = path.removeprefix("/api/models/").lstrip("/").split("/")
        commits = self.server.repositories.get(f"{user}/{name}")
        hidden = f"{user}/{name}" in self.server.private and self.headers["Authorization"] != f"Bearer {TOKEN}"
        if not commits or hidden:
            return self.refuse(404 if self.headers["Authorization"] else 401, "RepoNotFound")
        what, revision, *file = rest or ["revision", "main"]
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self.refuse(404, "RevisionNotFound")
        if what == "revision":
            return self.answer({"id": f"{user}/{name}", "sha": commit})
        contents = commits[commit]
        if what == "tree":
            return self.answer(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in contents.items()
                ]
            )
        content = contents["/".join(file)]
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        if self.command == "GET" and self.server.cut == file[-1]:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return self.wfile.write(content[: len(content) // 2])
        return self.answer(body=content, ETag=tag, X_Repo_Commit=commit)

    do_HEAD = do_GET


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def use_hub(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_CACHE do, which are read when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
