"""Send a server malformed requests: each must get a 4xx, and afterwards it must answer as before.

    python -m benchmarks.serving_fuzz --model=ckpt/Sample/mtgrec.winner.json                  10,000 requests: minutes
    python -m benchmarks.serving_fuzz --model=ckpt/Sample/mtgrec.winner.json --requests=500

The server is a process that this one starts at 127.0.0.1 and ends. No other is ever asked.
"""

import json
import random
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from benchmarks.serving_load import HOST, ask, serving
from utils.config import parse_config
from utils.errors import InputError
from utils.runtime import run_command
from utils.text_table import text_table

MAX_BODY_BYTES = 100_000  # of the server: a smaller limit is passed sooner
GOOD = {"items": [], "k": 3, "num_beams": 10}


@dataclass
class FuzzConfig:
    """What is sent."""

    model: str = ""
    """what serve.py takes"""
    requests: int = 10_000
    """malformed requests"""
    rand_seed: int = 0
    """seed of all random choices"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        return [] if self.model and self.requests > 0 else ["--model is needed, and --requests of at least 1"]


def scalar(rng: random.Random) -> Any:
    """Return any JSON value that is neither a list nor an object."""
    pieces = ["a", "\0", "\ud800", "é", "𝄞", '"', "../", "I0012", "{{7*7}}", "\n"]
    text = "".join(rng.choices(pieces, k=rng.randint(0, 9)))
    return rng.choice([None, True, False, rng.randint(-(10**30), 10**30), rng.uniform(-9, 9), 1e308, text])


def value(rng: random.Random, depth: int = 3) -> Any:
    """Return any JSON value."""
    kind = rng.random()
    if depth and kind < 0.2:
        return [value(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    if depth and kind < 0.4:
        return {str(scalar(rng)): value(rng, depth - 1) for _ in range(rng.randint(0, 4))}
    return scalar(rng)


def wrong_field(rng: random.Random) -> Any:
    """Return a request with one field that is wrong, whatever is in the others."""
    wrong = {
        "items": ["abc", 7, {}, True, [[]], [{}], [""], [None], ["a" * 501], ["\ud800"], ["a"] * 1001],
        "user": ["", [], {}, "a" * 501, "nobody of this name", " "],
        "k": [0, -1, 101, 10**30, 1.5, "3", None, True, [], {}],
        "num_beams": [0, -1, 101, "3", None, 2.5, False],
        "exclude_seen": ["true", 1, 0, None, []],
        "histories": [[], {}, "a", [[]], [{}], [{"items": [], "k": 3}], [{"items": []}] * 65],
        str(scalar(rng)): [value(rng)],
    }
    name = rng.choice(list(wrong))
    beside = {} if name in ("user", "histories") else GOOD
    return beside | {name: rng.choice(wrong[name])}


def deep(rng: random.Random) -> bytes:
    """Return lists or objects in one another, closed or not."""
    opening, closing = rng.choice([(b"[", b"]"), (b'{"items":', b"}"), (b'{"histories":[', b"]}")])
    depth = rng.randint(500, 5000)
    return opening * depth + closing * rng.choice([0, depth])


def number(rng: random.Random) -> bytes:
    """Return a request with a number that JSON does not have, or that is too large."""
    wrong = rng.choice(["NaN", "Infinity", "-Infinity", "1" * 5000, "1e999", "01", "0x3", "+3"])
    return json.dumps(GOOD | {"k": "?"}).replace('"?"', wrong).encode()


def mangled(rng: random.Random) -> bytes:
    """Return a request that is cut, or has a byte that UTF-8 does not have."""
    whole = json.dumps(GOOD).encode()
    return whole[: rng.randint(0, len(whole) - 1)] if rng.random() < 0.5 else whole[:5] + b"\xff" + whole[5:]


def recommend(rng: random.Random) -> bytes:
    """Return a POST /recommend whose body is refused."""
    made = rng.choice([wrong_field, wrong_field, wrong_field, value, deep, number, mangled])(rng)
    return http("POST", "/recommend", made if isinstance(made, bytes) else json.dumps(made).encode())


def http(method: str, path: str, content: bytes = b"", length: str = "", **headers: str) -> bytes:
    """Return a whole HTTP request; `length` is the header that says how long the content is."""
    lines = {"Host": HOST, "Content-Type": "application/json"}
    lines |= {name.replace("_", "-"): text for name, text in headers.items()}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in lines.items())]
    head.append(length or f"Content-Length: {len(content)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def chunked(rng: random.Random) -> bytes:
    """Return a request whose body comes in chunks, and is larger than any may be."""
    size = rng.randint(1000, 30_000)
    chunk = f"{size:x}\r\n".encode() + b" " * size + b"\r\n"
    content = chunk * (MAX_BODY_BYTES // size + 1) + b"0\r\n\r\n"
    return http("POST", "/recommend", content, "Transfer-Encoding: chunked")


def address(rng: random.Random) -> bytes:
    """Return a request for something that is not there, or with a query that is refused."""
    nowhere = ["/%2e%2e/%2e%2e/etc/passwd", "/..%2fserve.py", "/page.js", "/items/../../etc", "/model/x", "/%00", "/\\"]
    refused = ["/items?limit=0", "/items?limit=a", "/items?limit=101", f"/items?query={'a' * 201}", "/users?limit=-1"]
    unknown = ["/history", "/history?user=nobody%20of%20this%20name", f"/history?user={'a' * 501}", "/recommend"]
    return http(
        "GET", rng.choice([*nowhere, *refused, *unknown, f"/history?user=%{rng.randint(128, 255):x}", "/reload"])
    )


def broken(rng: random.Random) -> bytes:
    """Return what is no HTTP request, or calls another host."""
    lengths = ["-1", "abc", f"{10**30}", "3\r\nContent-Length: 4"]
    whole = [http("POST", "/recommend", length=f"Content-Length: {length}") for length in lengths]
    whole += [http("GET", "/", Host=host) for host in ("evil.example", "a" * 70_000, "[", "")]
    whole += [http("GET /", "/"), http("GET", "/").replace(b"Host:", b"Host :")]
    whole += [start + b"\r\n\r\n" for start in (b"GET", b"GET / HTTP/1.1", b"\0\1\2", b"\xff" + rng.randbytes(40))]
    return rng.choice(whole)


def other(rng: random.Random) -> bytes:
    """Return a request with another method, type, size or right than is wanted."""
    good = json.dumps(GOOD).encode()
    kind = rng.choice(["text/plain", "application/xml", "multipart/form-data", "application/json5"])
    return rng.choice(
        [
            http("POST", "/recommend", good, Content_Type=kind),
            http("POST", "/recommend", b" " * (MAX_BODY_BYTES + 1)),
            http("POST", rng.choice(["/items", "/health", "/model", "/", "/nowhere"]), good),
            http("POST", "/reload", Authorization=rng.choice(["Bearer wrong", "Bearer ", "right", "é" * 9])),
            http(rng.choice(["PUT", "DELETE", "PATCH", "BREW"]), "/recommend", good),
        ]
    )


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "JSON": recommend,
    "chunks": chunked,
    "address": address,
    "no HTTP": broken,
    "method, type, size, token": other,
}
WEIGHTS = (12, 1, 3, 3, 3)


def status_of(port: int, request: bytes) -> int:
    """Send bytes and return the status of the answer; 0 where there is none."""
    with socket.create_connection((HOST, port), timeout=30) as connection:
        with suppress(OSError):  # it has answered and closed before all was sent
            connection.sendall(request)
        try:
            line = connection.makefile("rb").readline().split()
        except OSError:
            return 0
        return int(line[1]) if len(line) > 1 else 0


def fuzz(port: int, requests: int, seed: int) -> Counter[tuple[str, int]]:
    """Send malformed requests; return how many of each kind got which status.

    Raises:
        InputError: One got another status than 4xx, or the server does not answer afterwards as before.
    """
    rng, found = random.Random(seed), Counter()

    def answer() -> tuple[int, bytes]:
        return ask(HTTPConnection(HOST, port, timeout=30), "POST", "/recommend", json.dumps(GOOD).encode())

    before = answer()
    for _ in range(requests):
        kind = rng.choices(list(KINDS), WEIGHTS)[0]
        request = KINDS[kind](rng)
        status = status_of(port, request)
        if not 400 <= status < 500:
            raise InputError(f"{kind}: status {status} for {request[:300]!r}")
        found[kind, status] += 1
    if before[0] != 200 or answer() != before:
        raise InputError("the server does not answer as before")
    return found


def main(argv: list[str] | None = None) -> None:
    """Send the requests and print how many of each kind got which status."""
    config, _ = parse_config(FuzzConfig, argv, "python -m benchmarks.serving_fuzz", __doc__)
    with serving(config.model, f"--max_body_bytes={MAX_BODY_BYTES}", "--token=right") as (process, port):
        before = process.memory_info().rss
        found = fuzz(port, config.requests, config.rand_seed)
        grown = (process.memory_info().rss - before) / 2**20
    rows = [[kind, str(status), f"{count:,}"] for (kind, status), count in sorted(found.items())]
    print(text_table(["malformed", "status", "requests"], rows))
    print(f"{sum(found.values()):,} requests, all refused; memory grew by {grown:.0f} MB; it answers as before")


if __name__ == "__main__":
    run_command(main)
