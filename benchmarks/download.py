"""Times `civman download` against curl and aria2c: one file over loopback, from nginx.

    python benchmarks/download.py [--size 1G] [--rounds 5] [--folder DIR]

Needs nginx, curl and aria2c. Two servers: (a) unthrottled, (b) 50 MB/s per connection. In each round every tool
runs once, in turn, into an empty folder; figures are whole processes, start to exit, the library's database having
been made before. civman runs from compiled bytecode, as where it is installed; it verifies SHA-256, parses the header,
syncs the file to disk and indexes it; the others do what their row says.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

UNITS = {"M": 1 << 20, "G": 1 << 30}
NAME = "model.safetensors"
PORTS = {"a": 8861, "b": 8862}
NGINX = """worker_processes 1; daemon on; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{ access_log off; sendfile on; default_type application/octet-stream; keepalive_requests 100000;
  server {{ listen 127.0.0.1:8861; root {folder}; }}
  server {{ listen 127.0.0.1:8862; root {folder}; limit_rate 50m; }} }}
"""


def make_model(path: Path, size: int) -> str:
    """A safetensors file of about `size` random bytes; its SHA-256."""
    tensors = size - 4096
    header = {"weight": {"dtype": "U8", "shape": [tensors], "data_offsets": [0, tensors]}}
    text = json.dumps(header).encode().ljust(4096 - 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        block = os.urandom(1 << 20)
        left = tensors
        while left:
            part = block[: min(left, len(block))]
            part = len(part).to_bytes(4, "little") + left.to_bytes(8, "little") + part[12:]
            file.write(part)
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


@contextmanager
def site(storage: str, size: int, sha256: str) -> Iterator[str]:
    """The least of a CivitAI: one version with one file, and its download address."""
    version = {
        "id": 2, "modelId": 1, "name": "v1", "baseModel": "Other", "trainedWords": [], "images": [],
        "model": {"name": "Benchmark", "type": "Other"},
        "files": [{"id": 3, "name": NAME, "type": "Model", "sizeKB": size / 1024, "primary": True,
                   "pickleScanResult": "Success", "virusScanResult": "Success", "metadata": {"format": "SafeTensor"},
                   "hashes": {"SHA256": sha256.upper()}}],
    }  # fmt: skip
    model = {"id": 1, "name": "Benchmark", "type": "Other", "modelVersions": [version]}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one segment, or a delayed acknowledgement holds the answer for 40 ms

        def do_GET(self) -> None:
            if self.path.startswith("/api/download"):
                self.send_response(307)
                self.send_header("Location", storage)
                body = b""
            else:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                body = json.dumps(version if "versions" in self.path else model).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def timed(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Seconds, and MiB of the largest process. Raises: the tool failed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"failed: {command}: {process.stderr.read().decode() if process.stderr else ''}")
    return elapsed, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1G")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the tools write; default: a temporary folder")
    parser.add_argument("--case", choices=["a", "b"], action="append")
    options = parser.parse_args()
    size = int(float(options.size[:-1]) * UNITS[options.size[-1]])
    for tool in ("nginx", "curl", "aria2c"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed")
    with tempfile.TemporaryDirectory(dir=options.folder) as work, tempfile.TemporaryDirectory(dir="/dev/shm") as shelf:
        sha256 = make_model(Path(shelf, NAME), size)
        Path(shelf).chmod(0o755)
        Path(shelf, "nginx.conf").write_text(NGINX.format(folder=shelf))
        subprocess.run(["nginx", "-c", f"{shelf}/nginx.conf"], check=True)
        try:
            for case in options.case or ["a", "b"]:
                run_case(case, Path(work), size, sha256, options.rounds)
        finally:
            subprocess.run(["nginx", "-c", f"{shelf}/nginx.conf", "-s", "stop"], check=True)


def run_case(case: str, work: Path, size: int, sha256: str, rounds: int) -> None:
    url = f"http://127.0.0.1:{PORTS[case]}/{NAME}"
    aria = ["aria2c", "-x16", "-s16", "-k1M", "--quiet", "--file-allocation=falloc", "-o", "out", url]
    with site(url, size, sha256) as address:
        tools = {
            "curl": ["curl", "-s", "-o", "out", url],
            "aria2c": aria,
            "aria2c, checksum": [*aria[:1], f"--checksum=sha-256={sha256}", *aria[1:]],
            "civman": [sys.executable, "-m", "civman", "download", "@2", "--quiet"],
        }
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
        for _ in range(rounds + 1):
            for name, command in tools.items():
                target = work / "target"
                target.mkdir()
                environ = {
                    **os.environ, "CIVMAN_CIVITAI_URL": address, "CIVMAN_LIBRARY": str(target / "library"),
                    "CIVITAI_API_TOKEN": "benchmark", "CIVMAN_CONFIG_DIR": str(target / "config"), "PWD": str(target),
                    "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(work / "bytecode"),
                }  # fmt: skip
                subprocess.run([sys.executable, "-m", "civman", "list", "--quiet"], env=environ, check=True)
                before = Path.cwd()
                os.chdir(target)
                figures[name].append(timed(command, environ))
                os.chdir(before)
                if name == "civman":
                    check(target / "library", sha256)
                shutil.rmtree(target)
                os.sync()
    words = {"a": "unthrottled", "b": "50 MB/s per connection"}[case]
    print(f"\n({case}) {words}, {size / (1 << 30):.2f} GiB, {rounds} rounds after one warm-up")
    print(f"{'tool':<18} {'min s':>7} {'median s':>9} {'max s':>7} {'MiB':>6}")
    medians = {}
    for name, runs in figures.items():
        seconds = [run[0] for run in runs[1:]]
        medians[name] = statistics.median(seconds)
        peak = max(run[1] for run in runs)
        print(f"{name:<18} {min(seconds):7.2f} {medians[name]:9.2f} {max(seconds):7.2f} {peak:6.0f}")
    for other in ("curl", "aria2c", "aria2c, checksum"):
        pairs = [ours[0] / theirs[0] for ours, theirs in zip(figures["civman"][1:], figures[other][1:], strict=True)]
        print(f"civman / {other}: {statistics.median(pairs):.2f} (median of pairs)")


def check(library: Path, sha256: str) -> None:
    """The file is there under its digest; a tool that failed quickly would otherwise win."""
    blob = library / "blobs" / "sha256" / sha256[:2] / f"{sha256}.safetensors"
    if not blob.is_file():
        raise SystemExit("civman left no file")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    main()
