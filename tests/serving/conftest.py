"""A run with random weights on a sample of 80 items, loaded once, and what serves it in this process."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tiny_runs import make_untrained_run

from data import sample
from data.interactions import load_interactions
from data.token_table import write_sem_ids
from serving.app import make_app, make_server
from serving.config import ServeConfig
from serving.served import Served, load_served


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder; its items I0001..I0080 have semantic IDs of 8 codes per level, its users are U00001.."""
    folder = tmp_path_factory.mktemp("serving")
    sample.main([f"--data_dir={folder / 'datasets'}", "--num_users=100", "--num_items=80"])
    dataset, items = folder / "datasets" / "Sample", np.arange(80)
    codes = np.column_stack([items // 16, items % 8, np.zeros(80, dtype=int), items % 16 // 8 + 1])
    names = sorted(load_interactions(dataset).item_names[1:])
    for epoch in (1, 2):
        write_sem_ids(dataset / "rqvae" / f"toy_8,8,8,8_{epoch}.sem_ids", names, codes)
    return make_untrained_run(dataset, folder / "runs" / "Sample" / "random")


@pytest.fixture(scope="session")
def served(run: Path) -> Served:
    return load_served(ServeConfig(str(run)))


@pytest.fixture
def client_of(run: Path, served: Served) -> Iterator[Callable[..., TestClient]]:
    """Return what makes a client of an application with settings, which calls from this machine."""
    with ExitStack() as stack:

        def make(of: Served = served, caller: str = "127.0.0.1", **settings: object) -> TestClient:
            app = make_app(ServeConfig(**{"model": str(run)} | settings), of)
            client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, client=(caller, 50000))
            return stack.enter_context(client)

        yield make


@pytest.fixture
def client(client_of: Callable[..., TestClient]) -> TestClient:
    return client_of()


@contextmanager
def serving(config: ServeConfig, served: Served) -> Iterator[int]:
    """Serve from a thread of this process; yield the port."""
    server = make_server(config, served)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def port_of(run: Path, served: Served) -> Iterator[Callable[..., int]]:
    """Return what makes a server with settings, and says its port."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(ServeConfig(str(run), **settings), served))


@pytest.fixture
def port(port_of: Callable[..., int]) -> int:
    return port_of()
