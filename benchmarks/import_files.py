"""Time `civman import` of files that CivitAI knows: the first import, and a second one that reads nothing.

    python benchmarks/import_files.py [COUNT]

A loopback server answers as CivitAI does, with one model for each file; the files are small LoRAs, so that requests,
rows and sidecars are measured and not the disk.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from civman.demo.demo_weights import safetensors_bytes


def main() -> None:
    """Make the files and the server, run both imports, and print a line for each."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = _Site([_written(folder / "models", number) for number in range(count)])
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        for run in ("first", "second"):
            site.requests = 0
            started = time.monotonic()
            done = _import(folder, address)
            print(
                f"{run}: {time.monotonic() - started:.1f} s for {count} files, {site.requests} requests, "
                f"{done['on_civitai']} identified, {done['known_before']} known before"
            )
        server.shutdown()


def _written(folder: Path, number: int) -> tuple[str, int]:
    folder.mkdir(exist_ok=True)
    shapes = {"lora_unet_block.lora_down.weight": (4, 8), "lora_unet_block.lora_up.weight": (8, 4)}
    data = safetensors_bytes(shapes, seed=str(number))
    (folder / f"lora {number}.safetensors").write_bytes(data)
    return hashlib.sha256(data).hexdigest(), len(data)


def _import(folder: Path, address: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"CIVMAN_LIBRARY": str(folder / "library"), "CIVMAN_CIVITAI_URL": address, "HOME": str(folder)}
    command = [sys.executable, "-m", "civman", "import", str(folder / "models"), "--json"]
    ran = subprocess.run(command, env=environment, capture_output=True, check=True, cwd=folder)
    result: dict[str, Any] = json.loads(ran.stdout)["import"]
    return result


class _Site:
    """One model with one version and one file for each (SHA-256, size)."""

    def __init__(self, files: list[tuple[str, int]]) -> None:
        self.requests = 0
        self._models = {number: self._model(number, *file) for number, file in enumerate(files, 1)}
        self._by_hash = {sha256.upper(): number for number, (sha256, _) in enumerate(files, 1)}

    def answer(self, path: str, body: bytes) -> object:
        """The JSON for one request; None if there is no such page."""
        self.requests += 1
        if path.startswith("/api/v1/model-versions/by-hash/ids"):
            found = [(digest.upper(), self._by_hash.get(digest.upper())) for digest in json.loads(body)]
            return [{"modelVersionId": number, "modelId": number, "hash": digest} for digest, number in found if number]
        if path.startswith("/api/v1/models?"):
            numbers = [int(number) for number in re.findall(r"[?&]ids=(\d+)", path)]
            return {"items": [self._models[number] for number in numbers], "metadata": {}}
        return None

    @staticmethod
    def _model(number: int, sha256: str, size: int) -> dict[str, Any]:
        file = {
            "id": number, "name": f"lora{number}.safetensors", "type": "Model", "sizeKB": size / 1024, "primary": True,
            "metadata": {"format": "SafeTensor"}, "hashes": {"SHA256": sha256.upper(), "AutoV2": sha256[:10].upper()},
        }  # fmt: skip
        version = {
            "id": number, "name": "v1", "baseModel": "SD 1.5", "publishedAt": "2025-01-01T00:00:00.000Z",
            "trainedWords": [f"word{number}"], "files": [file],
            "images": [{"url": f"https://image.civitai.com/{n}.jpeg", "nsfwLevel": 1} for n in range(10)],
        }  # fmt: skip
        return {
            "id": number, "name": f"Model {number}", "type": "LORA", "description": "<p>words</p>" * 100,
            "tags": ["style"], "creator": {"username": "maker"}, "modelVersions": [version],
        }  # fmt: skip


def _handler(site: _Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Stay silent."""

        def _answer(self) -> None:
            answer = site.answer(self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            data = json.dumps(answer if answer is not None else {"error": "not found"}).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer  # noqa: N815  # the names that http.server looks for

    return Handler


if __name__ == "__main__":
    main()
