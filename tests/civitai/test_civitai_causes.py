"""Every error the site is known to give has one code, one exit code and a way out, and never shows a secret."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from scripted_server import TOKEN, Canned, ScriptedServer

from civman.civitai.client import CivitaiClient
from civman.civitai.failures import Asked, Endpoint, cause, storage_cause
from civman.civitai.responses import DownloadAddress, safe_url
from civman.civitai.transport import Transport
from civman.domain.catalog import VersionId
from civman.errors import BadAnswer, CivmanError, ExitCode, Gone, NetworkError, NotAllowed, NotFound, UsageError

EXPECTED: dict[str, tuple[str, type[CivmanError], ExitCode]] = {
    "model not found": ("not-found", NotFound, ExitCode.NOT_FOUND),
    "model id not a number": ("bad-request", UsageError, ExitCode.USAGE),
    "version not found / unpublished / nsfwLevel 0": ("not-found", NotFound, ExitCode.NOT_FOUND),
    "version without any file": ("not-found", NotFound, ExitCode.NOT_FOUND),
    "version lookup crashed": ("server-error", NetworkError, ExitCode.NETWORK),
    "hash unknown": ("not-found", NotFound, ExitCode.NOT_FOUND),
    "bulk by-hash bad item": ("bad-request", UsageError, ExitCode.USAGE),
    "list: bad enum": ("bad-request", UsageError, ExitCode.USAGE),
    "list: limit too big": ("bad-request", UsageError, ExitCode.USAGE),
    "list: page with query": ("bad-request", UsageError, ExitCode.USAGE),
    "list: page too deep": ("page-cap", NetworkError, ExitCode.NETWORK),
    "list: favorites/hidden key without login (even =false)": ("no-key", NotAllowed, ExitCode.NOT_ALLOWED),
    "list: unknown username": ("not-found", NotFound, ExitCode.NOT_FOUND),
    "list: malformed cursor": ("bad-cursor", NetworkError, ExitCode.NETWORK),
    "list: search backend down": ("server-error", NetworkError, ExitCode.NETWORK),
    "any: unexpected": ("server-error", NetworkError, ExitCode.NETWORK),
    "me without/with bad token": ("no-key", NotAllowed, ExitCode.NOT_ALLOWED),
    "wrong method": ("bad-answer", BadAnswer, ExitCode.NETWORK),
    "region blocked": ("region-blocked", NotAllowed, ExitCode.NOT_ALLOWED),
    "Cloudflare refuses the User-Agent": ("blocked-client", NetworkError, ExitCode.NETWORK),
    "images: busy": ("server-error", NetworkError, ExitCode.NETWORK),
    "images: search backend down": ("server-error", NetworkError, ExitCode.NETWORK),
    "download: no token": ("no-key", NotAllowed, ExitCode.NOT_ALLOWED),
    "download: no token, browser-like User-Agent": ("login-page", BadAnswer, ExitCode.NETWORK),
    "download: creator disabled downloads (generation only)": (
        "downloads-disabled", NotAllowed, ExitCode.NOT_ALLOWED),
    "download: early access / paid": ("early-access", NotAllowed, ExitCode.NOT_ALLOWED),
    "download: early access, browser-like User-Agent": ("paid-access", NotAllowed, ExitCode.NOT_ALLOWED),
    "download: logged in without a grant (private)": ("private", NotAllowed, ExitCode.NOT_ALLOWED),
    "download: banned ip or user": ("banned", NotAllowed, ExitCode.NOT_ALLOWED),
    "download: not found, unpublished, deleted, real-person model, or type/format/size/fp did not match the chosen "
    "file": ("not-found", NotFound, ExitCode.NOT_FOUND),
    "download: archived": ("archived", Gone, ExitCode.NOT_FOUND),
    "download: account quota": ("quota", NetworkError, ExitCode.NETWORK),
    "download: bad type value": ("bad-request", UsageError, ExitCode.USAGE),
    "storage: Authorization header sent on to R2": ("storage-refused", NetworkError, ExitCode.NETWORK),
}  # fmt: skip


def as_sent(case: dict[str, Any]) -> Canned:
    body = case.get("body", case.get("body_text", case.get("body_text_contains", "")))
    headers = {name: value.replace("{id}", "12") for name, value in case.get("headers", {}).items()}
    if isinstance(body, str):
        return Canned(
            case["status"], body.encode(), {"Content-Type": case.get("content_type", "text/plain"), **headers}
        )
    return Canned(case["status"], body, headers)


def all_text(error: BaseException) -> str:
    chain, current = "", error
    while current is not None:
        chain += f"{current} {current!r} {getattr(current, 'hint', '')} {getattr(current, 'facts', '')}\n"
        current = current.__cause__ or current.__context__
    return chain


def test_every_known_error_has_its_code_exit_code_and_hint(
    saved: Callable[[str], Any], site: ScriptedServer, transport: Callable[..., Transport]
) -> None:
    cases = [case for case in saved("errors.derived")["cases"] if case["name"] != "download: ok"]
    assert {case["name"] for case in cases} == set(EXPECTED)
    for case in cases:
        if case["name"].startswith("storage"):
            sent = as_sent(case)
            error = storage_cause(sent.status, sent.headers, b"<Error><Code>" + sent.body + b"</Code></Error>")
        else:
            site.script.clear()
            site.answers(as_sent(case))
            client = CivitaiClient(transport(token=None))
            ask = client.download_address if case["name"].startswith("download") else client.version
            with pytest.raises(CivmanError) as caught:
                ask(VersionId(12))
            error = caught.value

        code, kind, exit_code = EXPECTED[case["name"]]
        assert (error.code, type(error), error.exit_code) == (code, kind, exit_code), case["name"]
        assert len(error.hint) > 10, case["name"]
        assert "\n" not in error.message, case["name"]


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, b'{"error":"Unauthorized"}', "bad-key"),
        (401, b'{"error":"Unauthorized","message":"The creator of this asset has disabled downloads on this file"}',
         "downloads-disabled"),
        (403, b'{"error":"Early Access","message":"This asset is in Early Access."}', "paid-access"),
        (403, b'{"error":"Something new"}', "not-allowed"),
        (403, b"error code: 1020", "blocked-client"),
        (403, b"<!DOCTYPE html><title>Just a moment...</title>", "blocked-client"),
        (429, b"error code: 1015", "rate-limited"),
        (429, b'{"message":"slow"}', "rate-limited"),
        (404, b"File not found", "not-found"),
        (404, b"<!doctype html><p>no such page", "bad-answer"),
        (400, b'[{"path":["limit"],"message":"Too big"}]', "bad-request"),
        (400, b'{"error":{"name":"ZodError","message":"not json"}}', "bad-request"),
        (522, b"<html>cloudflare</html>", "server-error"),
        (500, b"\xff\xfe\x00", "server-error"),
        (200, b"<html>please login</html>", "login-page"),
    ],
)  # fmt: skip
def test_shapes_of_bodies_do_not_matter(status: int, body: bytes, code: str) -> None:
    error = cause(status, {}, body, Asked("version 12", Endpoint.DOWNLOAD, has_key=True))

    assert error.code == code
    assert error.hint


def test_early_access_says_until_when() -> None:
    body = json.dumps({"error": "Early Access", "deadline": "2026-08-23T20:55:59.248Z", "message": "x"}).encode()

    error = cause(403, {}, body, Asked("version 12", Endpoint.DOWNLOAD, has_key=True))

    assert error.message == "in early access until 2026-08-23: version 12"
    assert error.facts["deadline"] == "2026-08-23T20:55:59.248Z"


@pytest.mark.parametrize(
    ("deadline", "words"),
    [
        ("2099-12-31T00:00:00.000Z", "2099-12-31"),
        ("2026-03-01T00:30:00+02:00", "2026-02-28"),  # the date in UTC, as everywhere
        ("2026-03-01T23:59", "2026-03-01"),
        ("2026-03-01", "2026-03-01"),
        ("the end of\nthe month", "the end of the month"),
        ("2026-02-30T00:00:00Z", "2026-02-30T00:00:00Z"),
    ],
)
def test_the_end_of_early_access_is_a_date(deadline: str, words: str) -> None:
    body = json.dumps({"error": "Early Access", "deadline": deadline}).encode()

    error = cause(403, {}, body, Asked("version 12", Endpoint.DOWNLOAD, has_key=True))

    assert error.message == f"in early access until {words}: version 12"


def test_validation_error_names_the_parameter() -> None:
    issues = json.dumps([{"path": ["sort"], "message": 'expected one of "Newest"'}])
    body = json.dumps({"error": {"name": "ZodError", "message": issues}}).encode()

    assert 'sort: expected one of "Newest"' in cause(400, {}, body, Asked("the search")).message


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", "link-expired"),
        (403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>", "link-expired"),
        (401, b'{"code":"expired_auth_token","message":"","status":401}', "link-expired"),
        (400, b"<Error><Code>InvalidRequest</Code></Error>", "storage-refused"),
        (400, b"<Error><Code>AuthorizationQueryParametersError</Code></Error>", "link-expired"),
        (404, b"<Error><Code>NoSuchKey</Code></Error>", "storage-not-found"),
        (503, b"<Error><Code>SlowDown</Code></Error>", "storage-busy"),
        (418, b"", "storage-error"),
        (410, b'{"error":"Model archived, not available for download"}', "archived"),
        (429, b'{"error":"We\'ve noticed an unusual amount of downloading"}', "quota"),
    ],
)
def test_storage_speaks_xml_or_json(status: int, body: bytes, code: str) -> None:
    headers = {"Content-Type": "application/json" if body.startswith(b"{") else "application/xml"}

    assert storage_cause(status, headers, body).code == code


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 405, 410, 418, 429, 451, 500, 503, 522])
@pytest.mark.parametrize("shape", ["error", "message", "nested", "text", "html"])
def test_no_error_shows_the_key_or_a_signed_address(
    site: ScriptedServer, transport: Callable[..., Transport], caplog: pytest.LogCaptureFixture, status: int, shape: str
) -> None:
    caplog.set_level("DEBUG")
    leak = f"Bearer {TOKEN} https://user:{TOKEN}@storage/x?X-Amz-Signature=SECRET1&token={TOKEN}#SECRET1"
    body: Any = {
        "error": {"error": leak},
        "message": {"message": leak},
        "nested": {"error": {"message": leak}},
        "text": leak.encode(),
        "html": f"<html>{leak}</html>".encode(),
    }[shape]
    site.answers(Canned(status, body, {"Location": leak.split()[2]} if status == 301 else {}))

    with pytest.raises(CivmanError) as caught, CivitaiClient(transport()) as client:
        client.version(VersionId(12))

    assert TOKEN not in all_text(caught.value)
    assert "SECRET1" not in all_text(caught.value)
    assert TOKEN not in caplog.text


def test_key_is_in_no_repr(transport: Callable[..., Transport]) -> None:
    one = transport()

    address = DownloadAddress(f"https://storage/x?sig={TOKEN}")

    assert TOKEN not in f"{one!r} {one} {address!r} {address} {CivitaiClient(one)!r}"
    assert repr(address) == "DownloadAddress('https://storage/x', send_token=False)"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@civitai.com:8443/a/b?token=1#f", "https://civitai.com:8443/a/b"),
        ("//b2.civitai.com/x?y", "//b2.civitai.com/x"),
        ("/login?returnUrl=x", "/login"),
        ("http://[broken?x=1", "(an unreadable URL)"),
    ],
)
def test_shown_addresses_carry_neither_login_nor_query(url: str, shown: str) -> None:
    assert safe_url(url) == shown
    assert not re.search(r"[?#@]", shown)
