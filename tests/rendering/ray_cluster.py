"""A Ray cluster on this machine, started with `ray start` as a user does: a head without cores, and two nodes."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

PATIENCE_S = 60
RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")


@contextmanager
def ray_cluster(cache: Path) -> Iterator[str]:
    """Yield the cluster's address, HOST:PORT. Each node keeps the models that it fetches in its own folder in `cache`.

    At the end, all processes of the cluster are killed.
    """
    import psutil
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    address = f"{host}:{port}"
    temporary = tempfile.mkdtemp(prefix="ray")  # short, because the names of Unix sockets are limited to 107 bytes
    head = ["--head", f"--port={port}", f"--node-ip-address={host}", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir={temporary}"]  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, arguments: list[str]) -> None:
        with (cache / f"{name}.log").open("ab") as log:
            running.append(
                subprocess.Popen([*RAY, *arguments], stdout=log, stderr=log, start_new_session=True,
                                 env=os.environ | {"CIVMAN_WORKER_CACHE": str(cache / name)})
            )  # fmt: skip

    cache.mkdir(parents=True, exist_ok=True)
    try:
        start("head", head)
        _wait_for(host, port)
        for count, name in enumerate(("one", "two"), 2):
            start(name, [f"--address={address}", "--num-cpus=1"])
            # one after the other, because nodes that start at the same time may choose equal ports
            _wait_for_nodes(address, count, cache / f"{name}.log")
        yield address
    finally:
        everything = [psutil.Process(each.pid) for each in running if each.poll() is None]
        everything += [child for each in everything for child in each.children(recursive=True)]
        everything += [
            each for each in psutil.process_iter(["cmdline"]) if temporary in " ".join(each.info["cmdline"] or [])
        ]
        for each in everything:
            with suppressed():
                each.kill()
        psutil.wait_procs(everything, timeout=PATIENCE_S)
        for process in running:
            process.wait(PATIENCE_S)
        shutil.rmtree(temporary, ignore_errors=True)


def suppressed() -> AbstractContextManager[None]:
    """Ignore that a process has already ended."""
    import psutil

    return suppress(psutil.NoSuchProcess)


def kill_first(title: str, *, among: int | None = None) -> bool:
    """Kill one process whose command line contains `title`, and return whether there was one.

    `among`: only descendants of the process with this number.
    """
    import psutil

    candidates = psutil.process_iter() if among is None else psutil.Process(among).children(recursive=True)
    for each in candidates:
        with suppressed():
            if title in " ".join(each.cmdline()):
                each.kill()
                return True
    return False


def _wait_for(host: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection((host, port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _wait_for_nodes(address: str, count: int, log: Path) -> None:
    code = "import sys, ray; ray.init(address=sys.argv[1], logging_level='error', log_to_driver=False); "
    code += "print(sum(node['Alive'] for node in ray.nodes()))"
    deadline = time.monotonic() + PATIENCE_S
    while True:
        asked = subprocess.run([sys.executable, "-c", code, address], check=False, capture_output=True, text=True)
        if asked.stdout.strip().endswith(str(count)):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {count} nodes: {asked.stdout}{asked.stderr[-2000:]}{log.read_text()}")
