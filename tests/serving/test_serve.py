"""The command as people run it, and the commands of docs/serving.md against it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from tiny_runs import ROOT

import serve
from benchmarks.serving_load import ask
from utils.errors import InputError

DOCS = (ROOT / "docs" / "serving.md").read_text()


def start(model: Path, *flags: str) -> tuple[subprocess.Popen, int]:
    """Start serve.sh as the documentation does, at a free port; return its process and the port."""
    environment = os.environ | {"SKIP_INSTALL": "1", "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    command = ["bash", ROOT / "serve.sh", f"--model={model}", "--port=0", *flags]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = process.stdout.readline()
    assert re.fullmatch(r"\S+, 80 items: the page is at http://127\.0\.0\.1:\d+/\n", said), process.communicate()
    return process, int(said.rsplit(":", 1)[1].strip("/\n"))


def end(process: subprocess.Popen) -> tuple[int, float, str]:
    """Send SIGTERM; return the exit code, how many seconds it took, and what it said on the error stream."""
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, said = process.communicate(timeout=30)
    return process.returncode, time.monotonic() - started, said


@pytest.fixture(scope="module")
def port(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of a server for the examples of the page."""
    process, port = start(run)
    yield port
    assert end(process)[0] == 0


def test_the_commands_of_the_page(port: int):
    """Every curl of the page gets an answer, and what the page shows of it has the same form."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL))
    commands = re.findall(r"^curl .*(?:\\\n.*)*", blocks, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        assert "http://127.0.0.1:8000/" in command
        here = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("curl ", "curl --fail-with-body -sS ", 1)
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, command + done.stdout + done.stderr
        assert json.loads(done.stdout), command
    assert {"recommend", "items", "users", "history", "model", "health", "reload"} <= set(
        re.findall(r"127\.0\.0\.1:8000/(\w+)", "\n".join(commands))
    )


def test_the_answer_that_the_page_shows_has_the_form_of_a_real_one(port: int):
    shown = json.loads(re.search(r"```json\n(.*?)```", DOCS, re.DOTALL)[1])
    _, content = ask(HTTPConnection("127.0.0.1", port), "POST", "/recommend", b'{"items": ["I0003", "I003"], "k": 1}')

    def form(value: object) -> object:
        if isinstance(value, dict):
            return {name: form(each) for name, each in value.items()}
        return [form(value[0])] if isinstance(value, list) and value else type(value)

    assert form(shown) == form(json.loads(content))


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted(run: Path):
    process, port = start(run, "--max_wait_ms=1500", "--max_batch=100")
    answers, threads = [], []

    def client() -> None:
        body = json.dumps({"items": ["I0003"], "k": 3}).encode()
        answers.append(ask(HTTPConnection("127.0.0.1", port, timeout=30), "POST", "/recommend", body))

    for _ in range(8):
        threads.append(threading.Thread(target=client))
        threads[-1].start()
    half = socket.create_connection(("127.0.0.1", port))  # never sends its body
    half.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
    health = HTTPConnection("127.0.0.1", port, timeout=30)
    while json.loads(ask(health, "GET", "/health")[1])["waiting"] < 8:
        time.sleep(0.01)
    code, seconds, said = end(process)
    for thread in threads:
        thread.join(30)
    assert (code, said) == (0, "")
    assert seconds < 10
    assert [status for status, _ in answers] == [200] * 8
    assert len({content for _, content in answers}) == 1


def test_a_port_that_is_taken_is_said(run: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1 port {port}: .*; choose another --port"):
            serve.main([f"--model={run}", f"--port={port}"])


def test_what_is_not_installed_is_said(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"serving needs fastapi and uvicorn; bash serve\.sh installs"):
        serve.main([f"--model={run}"])


def test_a_model_that_is_none_is_said(tmp_path: Path):
    with pytest.raises(InputError, match="is neither a model folder"):
        serve.main([f"--model={tmp_path}", "--port=0"])
    with pytest.raises(InputError, match="name a run or model folder with --model"):
        serve.main([])
