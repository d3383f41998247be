"""The transport's manners: who sees the key, how often it asks, what it takes for an answer."""

import gzip
import json
import socket
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from scripted_server import NOW, TOKEN, Canned, ScriptedServer

from civman.civitai.failures import Asked
from civman.civitai.site import user_agent
from civman.civitai.transport import Transport
from civman.errors import BadAnswer, CivmanError, ConfigError, NetworkError, Offline

WHAT = Asked("version 12", has_key=True)
Make = Callable[..., Transport]


def test_own_user_agent_is_sent_and_passes_for_no_browser(site: ScriptedServer, transport: Make) -> None:
    site.answers({"ok": 1})

    transport().get_json("/api/v1/me", asked=WHAT)

    sent = site.asked[0].headers["User-Agent"]
    assert sent == user_agent()
    assert sent.startswith("civman/")
    for word in ("mozilla", "chrome", "safari", "firefox", "opera", "edge", "python-urllib"):
        assert word not in sent.lower()


def test_key_travels_in_the_header_only(site: ScriptedServer, transport: Make) -> None:
    site.answers({"ok": 1})

    transport().get_json("/api/v1/models", [("limit", "1")], asked=WHAT)

    assert site.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in site.asked[0].target


@pytest.mark.parametrize("token", [None, TOKEN])
def test_netrc_never_speaks_for_civman(
    site: ScriptedServer, transport: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    site.answers({"ok": 1})

    transport(token=token).get_json("/api/v1/me", asked=WHAT)

    assert site.asked[0].headers["Authorization"] == (f"Bearer {TOKEN}" if token else None)


def test_redirect_to_another_port_is_not_followed_and_sees_no_key(
    site: ScriptedServer, other_site: ScriptedServer, transport: Make
) -> None:
    site.answers(Canned(307, headers={"Location": f"{other_site.address}/x?sig=1"}))
    other_site.answers({"ok": 1})

    with pytest.raises(BadAnswer) as caught:
        transport().get_json("/api/v1/me", asked=WHAT)

    assert caught.value.code == "redirected"
    assert "sig" not in str(caught.value)
    assert other_site.asked == []


def test_key_is_shown_to_the_configured_host_and_port_only(
    site: ScriptedServer, other_site: ScriptedServer, transport: Make
) -> None:
    file = Canned(200, b"bytes", {"Content-Type": "application/octet-stream"})
    site.answers(file)
    other_site.answers(file)
    login = other_site.address.replace("http://", "http://somebody:else@")

    one = transport()
    for address in (site.address, other_site.address, login, site.address.replace("127.0.0.1", "localhost")):
        one.first_hop(f"{address}/x", asked=WHAT)

    assert [asked.headers["Authorization"] for asked in site.asked] == [f"Bearer {TOKEN}", None]
    assert [asked.headers["Authorization"] for asked in other_site.asked] == [None, None]


def test_environment_proxy_is_used_but_never_for_loopback(
    site: ScriptedServer, other_site: ScriptedServer, transport: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", other_site.address)
    site.answers({"direct": True})
    other_site.answers({"proxied": True})

    direct = transport().get_json("/x", asked=WHAT)
    proxied = transport(address="http://civitai.test", token=None).get_json("/x", asked=WHAT)

    assert (direct, proxied) == ({"direct": True}, {"proxied": True})
    assert other_site.asked[0].target == "http://civitai.test/x"


def test_unusable_proxy_is_a_setting_to_correct(transport: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"gopher://me:{TOKEN}@proxy.test:1")

    with pytest.raises(ConfigError, match="proxy") as caught:
        transport(address="https://civitai.test").get_json("/x", asked=WHAT)

    assert TOKEN not in str(caught.value)


def test_offline_opens_no_socket(site: ScriptedServer, transport: Make) -> None:
    site.answers({"ok": 1})
    offline = transport(offline=True)

    for ask in (offline.get_json, offline.first_hop):
        with pytest.raises(Offline, match="version 12"):
            ask("/api/v1/me", asked=WHAT)

    assert site.asked == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 520, 524])
def test_passing_failures_are_asked_four_times_at_growing_distance(
    site: ScriptedServer, transport: Make, naps: list[float], notices: list[str], status: int
) -> None:
    site.answers(Canned(status, b"<html>busy</html>", {"Content-Type": "text/html"}))

    with pytest.raises(NetworkError):
        transport().get_json("/api/v1/me", asked=WHAT)

    assert len(site.asked) == 4
    assert naps == [1.0, 2.0, 4.0]
    assert len(notices) == 3


def test_distance_ends_at_thirty_seconds_and_jitters(site: ScriptedServer, transport: Make, naps: list[float]) -> None:
    site.answers(Canned(500))

    with pytest.raises(NetworkError):
        transport(tries=8, jitter=lambda: 0.8).get_json("/x", asked=WHAT)

    assert naps == pytest.approx([1.2, 2.4, 4.8, 9.6, 19.2, 30.0, 30.0])


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 410, 418, 451])
def test_lasting_failures_are_asked_once(site: ScriptedServer, transport: Make, naps: list[float], status: int) -> None:
    site.answers({"error": "no"}, status=status)

    with pytest.raises(CivmanError):
        transport().get_json("/api/v1/me", asked=WHAT)

    assert len(site.asked) == 1
    assert naps == []


@pytest.mark.parametrize(
    "text", ["We've noticed an unusual amount of downloading", "You've requested too many pages, please use cursors"]
)
def test_quota_and_page_cap_are_not_asked_again(site: ScriptedServer, transport: Make, text: str) -> None:
    site.answers({"error": text}, status=429)

    with pytest.raises(NetworkError):
        transport().get_json("/api/v1/me", asked=WHAT)

    assert len(site.asked) == 1


def test_recovered_site_gives_its_answer(site: ScriptedServer, transport: Make) -> None:
    site.answers(Canned(503), Canned(429), {"ok": 1})

    assert transport().get_json("/api/v1/me", asked=WHAT) == {"ok": 1}


@pytest.mark.parametrize(
    ("header", "nap"),
    [
        ("7", 7.0),
        (format_datetime(NOW + timedelta(seconds=9), usegmt=True), 9.0),
        (format_datetime(NOW - timedelta(seconds=9), usegmt=True), 1.0),
        ("0", 1.0),
        ("soon", 1.0),
        ("-3", 1.0),
    ],
)
def test_retry_after_is_honoured_as_number_and_date(
    site: ScriptedServer, transport: Make, naps: list[float], header: str, nap: float
) -> None:
    site.answers(Canned(503, headers={"Retry-After": header}), {"ok": 1})

    transport().get_json("/api/v1/me", asked=WHAT)

    assert naps == [nap]


def test_too_long_a_wait_is_told_instead_of_slept(site: ScriptedServer, transport: Make, naps: list[float]) -> None:
    site.answers(Canned(429, headers={"Retry-After": "3600"}))

    with pytest.raises(NetworkError) as caught:
        transport().get_json("/api/v1/me", asked=WHAT)

    assert (caught.value.code, caught.value.facts["retry_after"]) == ("rate-limited", "3600")
    assert naps == []
    assert len(site.asked) == 1


def test_cut_answer_is_asked_again(site: ScriptedServer, transport: Make) -> None:
    site.answers(Canned(200, {"name": "x" * 500}, cut_after=100), {"ok": 1})

    assert transport().get_json("/api/v1/me", asked=WHAT) == {"ok": 1}
    assert len(site.asked) == 2


def test_nobody_listening_is_unreachable_after_four_tries(transport: Make, naps: list[float]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(NetworkError, match=r"cannot reach `127\.0\.0\.1`") as caught:
            transport(address=address).get_json("/api/v1/me", asked=WHAT)

    assert caught.value.code == "unreachable"
    assert len(naps) == 3


def test_a_probe_of_a_site_that_is_not_there_is_sent_once(transport: Make, naps: list[float]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(NetworkError, match=r"cannot reach `127\.0\.0\.1`"):
            transport(address=address).post_json("/x", [], asked=WHAT, is_probe=True)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(NetworkError, match="does not respond"):
            transport(address=silent, timeout_s=0.1).post_json("/x", [], asked=WHAT, is_probe=True)

    assert naps == []


def test_a_probe_is_repeated_like_any_request_if_the_site_has_a_failure(
    site: ScriptedServer, transport: Make, naps: list[float]
) -> None:
    site.answers(Canned(503), {"ok": 1})

    assert transport().post_json("/x", [], asked=WHAT, is_probe=True) == {"ok": 1}
    assert len(naps) == 1


def test_silence_is_a_timeout(transport: Make) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        one = transport(address=f"http://127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.1, tries=1)
        with pytest.raises(NetworkError) as caught:
            one.get_json("/api/v1/me", asked=WHAT)

    assert caught.value.code == "timeout"


def test_plain_http_speaker_behind_https_is_a_tls_failure(site: ScriptedServer, transport: Make) -> None:
    site.answers({"ok": 1})

    with pytest.raises(NetworkError) as caught:
        transport(address=site.address.replace("http:", "https:"), tries=1).get_json("/x", asked=WHAT)

    assert caught.value.code == "tls"


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"<html>log in here: login</html>", "text/html", "login-page"),
        (b"<html>wifi</html>", "text/html; charset=utf-8", "bad-answer"),
        (b"hello", "text/plain", "bad-answer"),
        (b"", "application/json", "bad-answer"),
        (b'{"a":', "application/json", "bad-answer"),
        (b'{"a": NaN}', "application/json", "bad-answer"),
        (b"\xff\xfe{}", "application/json", "bad-answer"),
        (b"[" * 100_000, "application/json", "bad-answer"),
    ],
)
def test_what_is_no_json_is_a_bad_answer(
    site: ScriptedServer, transport: Make, body: bytes, kind: str, code: str
) -> None:
    site.answers(Canned(200, body, {"Content-Type": kind}))

    with pytest.raises(BadAnswer) as caught:
        transport().get_json("/api/v1/me", asked=WHAT)

    assert caught.value.code == code
    assert len(site.asked) == 1


def test_json_called_plain_text_is_taken(site: ScriptedServer, transport: Make) -> None:
    site.answers(Canned(200, b'\xef\xbb\xbf{"ok": 1}', {"Content-Type": "text/plain"}))

    assert transport().get_json("/x", asked=WHAT) == {"ok": 1}


def test_half_a_character_becomes_one_that_can_be_stored(site: ScriptedServer, transport: Make) -> None:
    site.answers(Canned(200, rb'{"name": "a\ud83d", "smile": "\ud83d\ude00"}', {"Content-Type": "application/json"}))

    assert transport().get_json("/x", asked=WHAT) == {"name": "a\ufffd", "smile": "\U0001f600"}


@pytest.mark.parametrize("is_packed", [False, True])
def test_endless_answer_is_stopped_early(site: ScriptedServer, transport: Make, is_packed: bool) -> None:
    body = json.dumps({"name": "x" * 5_000_000}).encode()
    packed = Canned(200, gzip.compress(body), {"Content-Type": "application/json", "Content-Encoding": "gzip"})
    site.answers(packed if is_packed else Canned(200, body))

    with pytest.raises(BadAnswer) as caught:
        transport(max_body_bytes=1_000_000).get_json("/x", asked=WHAT)

    assert caught.value.code == "too-long"
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    "address",
    [
        "ftp://civitai.com",
        "civitai.com",
        "https://",
        "https://me:pw@civitai.com",
        "https://x?y",
        "http://[x",
        "http://a:b",
    ],
)
def test_unusable_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Transport(address)

    assert "pw" not in str(caught.value)


def test_key_does_not_travel_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        Transport("http://civitai.com", token=TOKEN)

    assert Transport("http://civitai.com").address == "http://civitai.com"
    assert Transport("http://localhost:80/", token=TOKEN).address == "http://localhost:80"


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "schlüssel"])
def test_malformed_key_is_refused_unseen(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Transport("https://civitai.com", token=token)

    assert caught.value.code == "malformed-key"
    assert token not in str(caught.value)
