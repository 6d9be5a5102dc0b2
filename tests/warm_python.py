"""A Python for shell scripts, with the large packages loaded: the project's commands are forked from it, not started.

`warm_environment` makes the folder of a virtual environment whose bin/python hands each command of the project to a
server, and all else to the real interpreter. A command has its own environment, folder, output, exit code and signals
as ever. It lacks what is read when packages are loaded; the server has it as `VARIABLES` say.
"""

import atexit
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path

VARIABLES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PACKAGES = ("torch.utils.tensorboard", "accelerate", "sklearn.cluster", "sklearn.decomposition", "matplotlib.pyplot")
PACKAGES += ("jsonargparse", "docstring_parser", "duckdb", "safetensors.torch", "transformers.models.t5")
ROOT = Path(__file__).resolve().parent.parent

CLIENT = """#!{real} -IS
import json, os, signal, socket, sys
arguments = sys.argv[1:]
module = arguments[:1] == ["-m"] and arguments[1].split(".")[0] in {names}
if not module and not (arguments and arguments[0].endswith(".py")):
    os.execv({real!r}, [{real!r}, *arguments])
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [b"x"], [0, 1, 2])
request = json.dumps([arguments, os.getcwd(), dict(os.environ)])
connection.sendall(request.encode() + b"\\n")
answers = connection.makefile()
command = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(command, number))
code = int(answers.readline())
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@cache
def warm_environment() -> Path:
    """Start the server of this process, and return the environment's folder."""
    folder = Path(tempfile.mkdtemp(prefix="warm_python"))
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    client = CLIENT.format(real=sys.executable, names=names, address=str(folder / "socket"))
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(client)
    (folder / "bin" / "python").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | VARIABLES
    command = [sys.executable, __file__, str(folder / "socket")]
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "ready\n"
    return folder


def serve(address: str) -> list[str]:
    """Fork a process for each command; return, in that process only, its arguments. Ends when the tests have ended."""
    listener, tests = socket.socket(socket.AF_UNIX), os.getppid()
    listener.bind(address)
    listener.listen()
    listener.settimeout(0.5)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    print("ready", flush=True)
    while os.getppid() == tests:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return answer(connection)
        connection.close()
    shutil.rmtree(Path(address).parent)
    sys.exit()


def answer(connection: socket.socket) -> list[str]:
    """Fork the command, tell its client process and exit code; return, in the command only, its arguments."""
    _, files, *_ = socket.recv_fds(connection, 1, 3)
    arguments, folder, environment = json.loads(connection.makefile().readline())
    if command := os.fork():
        connection.sendall(f"{command}\n".encode())
        _, status = os.waitpid(command, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def run(arguments: list[str]) -> None:
    """Run a module or a file as `python` would, and end the process without a second of taking the packages apart."""
    is_module = arguments[0] == "-m"
    name, *flags = arguments[is_module:]
    own = os.getcwd() if is_module else str(Path(name).resolve().parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = paths if os.environ.get("PYTHONSAFEPATH") else [own, *paths]
    sys.argv = [name, *flags]
    code = 0
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    for package in PACKAGES:
        importlib.import_module(package)
    run(serve(sys.argv[1]))
