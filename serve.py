"""Serve a model over HTTP, with a page to try it at http://127.0.0.1:8000/.

    bash serve.sh --model=ckpt/Sample/mtgrec.winner.json          installs what it needs, then runs this command
    python serve.py --model=exported --port=9000 --num_threads=2
    curl -s -X POST http://127.0.0.1:8000/recommend --json '{"items": ["I0012", "I0345"], "k": 5}'

Histories that come together are computed together. It listens at 127.0.0.1 unless --host says otherwise; SIGTERM
finishes what was accepted. docs/serving.md has all of it.
"""

import os
import signal
import socket
from importlib.util import find_spec

import utils  # noqa: F401  # isort: skip  (before torch)
import torch

from serving.config import ServeConfig
from utils.config import parse_config
from utils.errors import InputError
from utils.runtime import run_command


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address; raise InputError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small packets at once only where it is told that this is TCP; else an answer may wait 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise InputError(f"cannot listen at {host} port {port}: {error}; choose another --port or --host") from None
    return listener


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; `argv` are the flags, by default the command line's."""
    config, _ = parse_config(ServeConfig, argv, "serve.py", __doc__)
    if missing := [name for name in ("fastapi", "uvicorn") if not find_spec(name)]:
        raise InputError(f"serving needs {' and '.join(missing)}; bash serve.sh installs requirements-serve.txt")

    from serving.app import CONNECTIONS, make_server
    from serving.served import load_served

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    listener = bound(config.host, config.port)
    served = load_served(config)
    server = make_server(config, served)
    for number in (signal.SIGTERM, signal.SIGINT):  # before uvicorn listens for them, and when it sends them on
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    host, port = listener.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    listener.listen(CONNECTIONS)  # what is printed is true from here on
    print(f"{served.about['name']}, {served.about['items']:,} items: the page is at {where}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    run_command(main)
    os._exit(0)  # all is answered, and Python takes seconds to take torch apart
