"""Measure a server under load: latency, requests per second, memory; with batching and one request at a time.

    python -m benchmarks.serving_load                                        the paper's size, random weights: 3 minutes
    python -m benchmarks.serving_load --model=ckpt/Sample/mtgrec.winner.json --num_threads=2
    python -m benchmarks.serving_load --model=ckpt/Sample/mtgrec.winner.json --clients=[] --memory_requests=100000

The server is a process that this one starts at 127.0.0.1 and ends; each client sends its next request when it has the
answer to the last one. Clients compute on the same cores.
"""

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import yaml

from benchmarks.generated import NUM_ITEMS, PREFIX, write_dataset
from data.interactions import load_interactions
from model.recommender import Architecture, build_recommender
from utils.config import parse_config
from utils.errors import InputError
from utils.files import write_json, write_text
from utils.runtime import ROOT, run_command, seed_everything
from utils.text_table import text_table

HOST = "127.0.0.1"  # no other: nobody else's server is put under load
MODES = {"batches": (), "one at a time": ("--max_batch=1",)}
BODIES, LONGEST = 500, 20  # different requests, and items in a history at most


@dataclass
class LoadConfig:
    """What is measured."""

    model: str = ""
    """what serve.py takes; by default a network of the paper's size with random weights on 24,587 items"""
    clients: list[int] = field(default_factory=lambda: [1, 8, 32])
    """clients at the same time, one number after another"""
    seconds: float = 20.0
    """length of each measurement"""
    num_threads: int = 2
    """threads of the server"""
    num_beams: int = 50
    """beams of each request, which asks for 10 items"""
    memory_requests: int = 0
    """requests by 8 clients over which memory is watched; 0: none"""
    memory_seconds: float = 3600.0
    """end of that, whether all were sent or not"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        wrong = [name for name in ("seconds", "num_threads", "num_beams", "memory_seconds") if getattr(self, name) <= 0]
        found = [f"{name}={getattr(self, name)} must be positive" for name in wrong]
        return found + [f"clients={self.clients} are at least 1 each"] * any(count < 1 for count in self.clients)


@contextmanager
def serving(model: Path | str, *flags: str) -> Iterator[tuple[psutil.Process, int]]:
    """Have a server of a model beside, at a free port of this machine; yield its process and its port."""
    command = [sys.executable, "serve.py", f"--model={Path(model).resolve()}", "--port=0", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            if not said:
                raise InputError(f"{model}: the server ended before it served")
            yield psutil.Process(process.pid), int(said.rsplit(":", 1)[1].strip(" /\n"))
        finally:
            process.terminate()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send a request of JSON and return the status and body of its answer."""
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def make_bodies(port: int, num_beams: int) -> list[bytes]:
    """Return requests for histories of 1 to 20 of the server's most popular items."""
    _, answer = ask(http.client.HTTPConnection(HOST, port, timeout=60), "GET", "/items?limit=100")
    names, rng = [item["item"] for item in json.loads(answer)["items"]], np.random.default_rng(0)
    histories = [rng.choice(names, rng.integers(1, LONGEST + 1)).tolist() for _ in range(BODIES)]
    return [json.dumps({"items": history, "num_beams": num_beams}).encode() for history in histories]


class Load:
    """Clients that send requests until so many are sent or so many seconds are over; every answer must be 200."""

    def __init__(self, port: int, bodies: list[bytes], clients: int, seconds: float, requests: int | None = None):
        self.port, self.bodies, self.left = port, bodies, requests
        self.latencies: list[float] = []  # seconds
        self.statuses: set[int] = set()
        self.started = time.perf_counter()
        self.end = self.started + seconds
        self.threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def _client(self, number: int) -> None:
        connection, rng = http.client.HTTPConnection(HOST, self.port, timeout=60), np.random.default_rng(number)
        while time.perf_counter() < self.end and (self.left is None or len(self.latencies) < self.left):
            body, started = self.bodies[rng.integers(len(self.bodies))], time.perf_counter()
            self.statuses.add(ask(connection, "POST", "/recommend", body)[0])
            self.latencies.append(time.perf_counter() - started)

    def finish(self) -> tuple[np.ndarray, float]:
        """Wait for the clients; return the latencies in milliseconds and the requests per second."""
        for thread in self.threads:
            thread.join()
        if self.statuses != {200}:
            raise InputError(f"the server answered {sorted(self.statuses)}, not 200 alone")
        return 1e3 * np.asarray(self.latencies), len(self.latencies) / (time.perf_counter() - self.started)


def write_paper_model(scratch: Path) -> Path:
    """Write a run of the paper's size with random weights, whose speed is that of trained ones; return its folder."""
    dataset, run = scratch / "datasets" / "generated", scratch / "runs" / "generated" / "random"
    write_dataset(dataset, num_tokenizers=1)
    names = load_interactions(dataset).item_names[1:]
    write_json(dataset / "metadata.sentence.json", {name: f"text of {name}" for name in names}, indent=None)
    seed_everything(0)
    recommender = build_recommender(Architecture((256,) * 4, num_layers=6, num_decoder_layers=6))
    recommender.save_pretrained(run / "model")
    settings = {"dataset": dataset.name, "data_dir": str(dataset.parent), "token_prefix": PREFIX, "sem_id_epochs": [1]}
    write_text(run / "config.yaml", yaml.safe_dump(settings | {"token_suffix": "sem_ids", "max_item_seq_len": 20}))
    return run


def measure_load(config: LoadConfig, model: Path | str) -> str:
    """Return a table of latencies for each way of computing and each number of clients."""
    rows = []
    for mode, flags in MODES.items():
        with serving(model, f"--num_threads={config.num_threads}", *flags) as (_, port):
            bodies = make_bodies(port, config.num_beams)
            Load(port, bodies, 2, 1.0).finish()  # warm
            for clients in config.clients:
                latencies, rate = Load(port, bodies, clients, config.seconds).finish()
                figures = [f"{value:.1f} ms" for value in np.percentile(latencies, [50, 95, 99])]
                rows.append([mode, str(clients), *figures, f"{rate:.1f}", f"{len(latencies):,}"])
    return text_table(["computed in", "clients", "p50", "p95", "p99", "requests/s", "requests"], rows)


def measure_memory(config: LoadConfig, model: Path | str) -> str:
    """Return a table of the server's memory as requests go by, ten rows at most."""
    rows, count = [], config.memory_requests
    with serving(model, f"--num_threads={config.num_threads}") as (process, port):
        load = Load(port, make_bodies(port, config.num_beams), 8, config.memory_seconds, count)
        while any(thread.is_alive() for thread in load.threads):
            if len(rows) < 9 and len(load.latencies) >= count * (len(rows) + 1) / 10:
                rows.append([f"{len(load.latencies):,}", f"{process.memory_info().rss / 2**20:.0f} MB"])
            time.sleep(0.05)
        load.finish()
        rows.append([f"{len(load.latencies):,}", f"{process.memory_info().rss / 2**20:.0f} MB"])
    return text_table(["requests", "memory"], rows)


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table of the load and one of the memory, as far as they are asked for."""
    config, _ = parse_config(LoadConfig, argv, "python -m benchmarks.serving_load", __doc__)
    with tempfile.TemporaryDirectory() as scratch:
        model = config.model or write_paper_model(Path(scratch))
        size = f"6 + 6 layers, d_model 128, {NUM_ITEMS:,} items" if not config.model else config.model
        print(f"{size}; {config.num_threads} threads, {config.num_beams} beams", flush=True)
        if config.clients:
            print(measure_load(config, model), flush=True)
        if config.memory_requests:
            print(measure_memory(config, model))


if __name__ == "__main__":
    run_command(main)
