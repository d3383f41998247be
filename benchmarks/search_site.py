"""Measure `civman search` over many pages: memory, and the time until the first row.

    python benchmarks/search_site.py [COUNT]

A loopback server answers with COUNT models (18,000 unless given), 100 on a page, each as large as CivitAI's usually
are. Prints the time of the first row, the whole time and the peak memory for each form of output.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ON_A_PAGE = 100


def main() -> None:
    """Run each form of output in a process of its own and print a line for it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 18_000
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(count))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for form in (["--quiet"], [], ["--json"]):
        first_s, whole_s, peak_mib, lines = _search(address, count, form)
        print(
            f"{form[0] if form else 'table':8} first row {first_s:.2f} s, {count} models {whole_s:.1f} s, "
            f"{lines} lines, at most {peak_mib:.0f} MiB"
        )
    server.shutdown()


def _search(address: str, count: int, form: list[str]) -> tuple[float, float, float, int]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environment |= {"CIVMAN_CIVITAI_URL": address, "CIVMAN_LIBRARY": f"{folder}/library", "HOME": folder}
        command = [sys.executable, "-m", "civman", "search", "--limit", str(count), *form]
        started = time.monotonic()
        with subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first_s, lines = 0.0, 0
            for line in process.stdout:
                lines += 1
                if not first_s and b"@" in line:
                    first_s = time.monotonic() - started
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
    unit = 1 if sys.platform == "darwin" else 1024
    return first_s, time.monotonic() - started, usage.ru_maxrss * unit / 2**20, lines


def _model(number: int) -> dict[str, Any]:
    file = {
        "id": number, "name": f"lora{number}.safetensors", "type": "Model", "sizeKB": 1000.5, "primary": True,
        "metadata": {"format": "SafeTensor", "fp": "fp16"}, "hashes": {"SHA256": f"{number:064X}"},
        "downloadUrl": f"https://civitai.com/api/download/models/{number}",
    }  # fmt: skip
    images = [
        {"url": f"https://image.civitai.com/{number}/{n}.jpeg", "nsfwLevel": 1, "width": 832, "height": 1216}
        for n in range(10)
    ]
    version = {
        "id": number, "name": "v1", "baseModel": "SDXL 1.0", "publishedAt": "2025-01-01T00:00:00.000Z",
        "trainedWords": [f"word{number}"], "files": [file], "images": images,
    }  # fmt: skip
    return {
        "id": number, "name": f"Model {number}", "type": "LORA", "description": "<p>words of it</p>" * 150,
        "tags": ["style"], "creator": {"username": "maker"}, "stats": {"downloadCount": 5}, "modelVersions": [version],
    }  # fmt: skip


def _handler(count: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Stay silent."""

        def do_GET(self) -> None:
            found = re.search(r"[?&]cursor=(\d+)", self.path)
            start = int(found[1]) if found else 0
            end = min(start + _ON_A_PAGE, count)
            metadata = {"nextCursor": str(end)} if end < count else {}
            models = [_model(number) for number in range(start + 1, end + 1)]
            data = json.dumps({"items": models, "metadata": metadata}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


if __name__ == "__main__":
    main()
