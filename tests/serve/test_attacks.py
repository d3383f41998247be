"""Requests that must not get through: from other sites, under other names, with paths, too large, malformed."""

import base64
import io
import json
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import AF_INET
from typing import Any

import httpx
import psutil
import pytest
from serve_running import QUICK, Served, start, stop

from civman.demo.preview_pictures import png
from civman.errors import Refused
from civman.serve.render_requests import changes_of
from civman.serve.request_checks import Access


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_foreign_host_is_refused_on_every_method(served: Served, host: str) -> None:
    host = host.replace("{port}", served.url.rpartition(":")[2])

    for method in ("GET", "POST", "DELETE"):
        answer = served.http.request(method, "/api/v1/jobs", headers={"Host": host})
        assert answer.status_code in (400, 403), method


def test_own_names_are_accepted(served: Served) -> None:
    port = served.url.rpartition(":")[2]

    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert served.http.get("/api/v1/server", headers={"Host": f"{name}:{port}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_another_sites_page_can_change_nothing(served: Served, headers: dict[str, str], method: str) -> None:
    path = "/api/v1/unload" if method == "POST" else "/api/v1/jobs/1"

    assert served.http.request(method, path, headers=headers).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_any_page_can_send_is_refused(served: Served, kind: str) -> None:
    answer = served.http.post("/api/v1/jobs", content=b'{"kind": "render"}', headers={"Content-Type": kind})

    assert answer.status_code == 415


def test_no_answer_allows_another_origin_or_framing(served: Served) -> None:
    answer = served.http.get("/api/v1/models", headers={"Origin": "http://evil.example"})

    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_malformed_bodies_are_a_400(served: Served, body: bytes) -> None:
    answer = served.http.post("/api/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400
    assert answer.json()["message"]


def test_a_declared_and_an_undeclared_large_body_are_refused(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in connection.recv(100)

    def chunks() -> Iterator[bytes]:
        for _ in range(70):
            yield b" " * 2**20

    try:
        answer = served.http.post("/api/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server has hung up, which is as good
    assert served.http.get("/api/v1/server").status_code == 200


PATHS = [
    "/etc/passwd",
    "../../etc/passwd",
    "~/model.safetensors",
    "C:\\models\\a.safetensors",
    "./tiny-sd1.safetensors",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", [
    "checkpoint", "vae", "embeddings", "loras", "config", "init_image", "parts", "upscale", "tiled_upscale", "hires",
    "face_restoration", "controls", "control_picture", "details",
])  # fmt: skip
def test_no_path_from_a_client_is_opened(served: Served, path: str, field: str) -> None:
    picture = base64.b64encode(png(1, 8, 8)).decode()
    values: dict[str, Any] = {
        "embeddings": [path], "loras": [{"ref": path}], "parts": [f"vae={path}"], "upscale": {"upscaler": path},
        "tiled_upscale": {"upscaler": path}, "hires": {"upscaler": path}, "details": [{"region": path}],
        "controls": [{"picture": picture, "ref": path}], "control_picture": [{"picture": path, "ref": "tiny-sd1"}],
    }  # fmt: skip
    name = "controls" if field == "control_picture" else field
    request = {"checkpoint": "tiny-sd1", "prompt": "a", **QUICK, name: values.get(field, path)}

    for where, body in (("plan", {"request": request}), ("jobs", {"kind": "render", "request": request})):
        answer = served.http.post(f"/api/v1/{where}", json=body)
        assert answer.status_code in (400, 403, 500), answer.text
        assert "root:" not in answer.text
        assert answer.status_code != 500 or answer.json()["code"] == "refused"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", ["checkpoint", "vae", "upscaler", "upscale", "tiled_upscale", "face_restoration",
                                   "details"])  # fmt: skip
@pytest.mark.parametrize("tail", ["", ":2", ":0.5:1"])
def test_no_path_in_a_changed_field_is_accepted(path: str, field: str, tail: str) -> None:
    if tail and field in ("checkpoint", "vae", "upscaler"):
        tail = ""  # these take no number
    with pytest.raises(Refused):
        changes_of({field: path + tail})


@pytest.mark.parametrize("text", ["lanczos", "lanczos:2", "civitai:123@456:1.5", "4x-UltraSharp:2048x0", "gfpgan:0.5"])
def test_names_and_ids_with_numbers_are_accepted(text: str) -> None:
    assert changes_of({"upscale": text}) == [("upscale", text)]


TRAVERSALS = [
    "/api/v1/pictures/../../serve.json", "/api/v1/models/..%2f..%2fserve.json", "/api/v1/pictures/%2e%2e/file",
    "//etc/passwd", "/api/v1/models/" + "A" * 64,
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_traversal_finds_nothing(served: Served, path: str) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part

    assert answer.split()[1] in (b"400", b"404")
    assert served.token.encode() not in answer


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}/a.png", "https://example.org/a.png", "file:///etc/passwd"]
)
def test_no_address_from_a_client_is_fetched(served: Served, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        address = address.replace("{port}", str(listener.getsockname()[1]))
        request = {"checkpoint": "tiny-sd1", "prompt": "a", **QUICK, "init_image": address}

        answer = served.http.post("/api/v1/plan", json={"request": request})

        assert answer.status_code in (400, 403)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_picture_bomb_is_refused_before_it_is_decoded(served: Served) -> None:
    from PIL import Image

    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    data = out.getvalue()
    assert len(data) < 2_000_000

    read = served.http.post("/api/v1/pictures/read", content=data, headers={"Content-Type": "application/octet-stream"})
    request = {"checkpoint": "tiny-sd1", "prompt": "a", **QUICK, "init_image": base64.b64encode(data).decode()}
    planned = served.http.post("/api/v1/plan", json={"request": request})

    assert (read.status_code, planned.status_code) == (403, 403)


@pytest.mark.parametrize("wrong", [
    {"width": 8000, "height": 8000}, {"count": 10_000}, {"prompt": "a" * 70_000}, {"unknown": 1}, {"steps": "many"},
    {"width": [1]}, {"hires": {"scale": 100}},
])  # fmt: skip
def test_more_than_the_server_renders_is_refused_at_once(served: Served, wrong: dict[str, Any]) -> None:
    request = {"checkpoint": "tiny-sd1", "prompt": "a", **QUICK, **wrong}

    assert served.http.post("/api/v1/jobs", json={"kind": "render", "request": request}).status_code in (400, 403)


def test_commands_need_the_token_even_on_loopback(served: Served) -> None:
    body = {"argv": ["render", "--version"], "folder": "/"}

    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp4"}, {"Cookie": "civman-token=x"}):
        assert served.http.post("/api/v1/commands", json=body, headers=headers).status_code == 401
    right = {"Authorization": f"Bearer {served.token}"}
    for argv in (["remove", "tiny-sd1"], [], "render", [1]):
        assert served.http.post("/api/v1/commands", json={**body, "argv": argv}, headers=right).status_code == 400


def test_only_the_owner_can_read_the_token(served: Served) -> None:
    assert stat.S_IMODE((served.library / "serve.json").stat().st_mode) == 0o600


def test_off_loopback_every_request_needs_the_token(tmp_path: Path, stocked_library: Any) -> None:
    environment = {**stocked_library[1], "CIVMAN_LIBRARY": str(tmp_path / "library")}
    served = start(tmp_path / "library", environment, "--host", "0.0.0.0")
    port = served.url.rpartition(":")[2]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            assert http.get("/api/v1/models").status_code == 401
            assert http.get("/api/v1/models", headers={"Authorization": f"Bearer {served.token}"}).status_code == 200
            assert http.get("/api/v1/models", auth=("anyone", served.token)).status_code == 200
            entered = http.get("/", params={"token": served.token})
            assert "SameSite=strict" in entered.headers["set-cookie"]
            assert "HttpOnly" in entered.headers["set-cookie"]
            assert http.get("/api/v1/models").status_code == 200, "the cookie is enough"
            http.cookies.clear()
            guesses = [http.get("/api/v1/models", auth=("a", f"guess {n}")).status_code for n in range(40)]
            assert 429 in guesses
            assert 200 not in guesses
    finally:
        stop(served)


def own_addresses() -> list[str]:
    """The IPv4 addresses of this machine's network interfaces, asked of the system and not of its host name."""
    found = {each.address for listed in psutil.net_if_addrs().values() for each in listed if each.family == AF_INET}
    if sys.platform == "linux":
        found.add("127.0.0.2")  # every address in 127.0.0.0/8 is this machine, and no host name leads there
    return sorted(found)


def test_a_server_on_all_addresses_is_reached_under_each_and_under_no_other(
    tmp_path: Path, stocked_library: Any
) -> None:
    environment = {**stocked_library[1], "CIVMAN_LIBRARY": str(tmp_path / "library")}
    served = start(tmp_path / "library", environment, "--host", "0.0.0.0")
    port = served.url.rpartition(":")[2]
    try:
        with httpx.Client(headers={"Authorization": f"Bearer {served.token}"}, trust_env=False) as http:

            def status(address: str, method: str = "GET", **headers: str) -> int:
                url = f"http://{address}:{port}/api/v1/jobs"
                return http.request(method, url, headers={"Host": f"{address}:{port}", **headers}).status_code

            for own in own_addresses():
                assert status(own) == 200, own
                assert status(own, "POST", Origin=f"http://{own}:{port}") != 403, "its own page may post"
                for foreign in ("evil.example", "192.0.2.77", "0.0.0.0", f"{own}.evil.example", f"{own}@evil.example"):
                    assert status(own, Host=f"{foreign}:{port}") == 403, foreign
                    assert status(own, "POST", Origin=f"http://{foreign}:{port}") == 403, foreign
                assert status(own, Host=f"{own}:1") == 403
                assert status(own, Host=own) == 403
    finally:
        stop(served)


@pytest.mark.parametrize(
    ("arrived", "host"),
    [
        ("192.168.1.7", "192.168.1.7:7860"),
        ("fd00::2", "[fd00::2]:7860"),
        ("FD00:0:0::2", "[fd00::2]:7860"),
        ("fe80::1%eth0", "[fe80::1]:7860"),
        ("::ffff:192.168.1.7", "192.168.1.7:7860"),  # IPv4 on a socket of IPv6
    ],
)
def test_a_browser_names_the_address_at_which_a_request_arrives(arrived: str, host: str) -> None:
    scope = {"server": (arrived, 7860)}

    assert host in Access("token", frozenset({"127.0.0.1:7860"}), by_address=True).hosts_for(scope)
    assert Access("token", frozenset({"127.0.0.1:7860"})).hosts_for(scope) == {"127.0.0.1:7860"}


def test_no_answer_contains_a_key_or_the_token(tmp_path: Path, stocked_library: Any) -> None:
    key = "d41d8cd98f00b204e9800998ecf8427e"
    environment = {**stocked_library[1], "CIVMAN_LIBRARY": str(tmp_path / "library"), "CIVITAI_API_TOKEN": key,
                   "CIVMAN_CIVITAI_URL": "http://127.0.0.1:9"}  # fmt: skip
    served = start(tmp_path / "library", environment)
    try:
        texts = [
            served.http.get(path).text
            for path in ("/", "/api/v1/server", "/api/v1/jobs", "/api/v1/doctor", "/api/v1/openapi.json",
                         "/api/v1/civitai/search?q=a", "/api/v1/models", "/api/v1/pictures", "/nothing")
        ]  # fmt: skip
        assert json.loads(texts[1])["version"]
        assert not [text for text in texts if key in text or served.token in text]
    finally:
        stop(served)
