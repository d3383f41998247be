"""`civman login` and `civman doctor`: a key is proven before it is kept, and never shown."""

import io
import stat
from pathlib import Path

import pytest
from running import Civman

from civman.demo.server import DEMO_TOKEN, CivitaiServer


@pytest.fixture
def site(server: CivitaiServer, monkeypatch: pytest.MonkeyPatch) -> CivitaiServer:
    """The demo's CivitAI, without a key."""
    monkeypatch.setenv("CIVMAN_CIVITAI_URL", server.url)
    return server


def type_key(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))


def test_a_good_key_is_kept_where_only_its_owner_can_read_it(
    site: CivitaiServer, civman: Civman, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    type_key(monkeypatch, f"  {DEMO_TOKEN} ")

    result = civman("login", "--no-keyring")

    path = tmp_path / "config" / "credentials.json"
    assert result.code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert DEMO_TOKEN not in result.out + result.err
    assert civman("download", "51207").code == 0


def test_a_bad_key_is_refused_and_not_kept(
    site: CivitaiServer, civman: Civman, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    type_key(monkeypatch, "wrong-key-0123456789")

    result = civman("login", "--json")

    assert result.code == 4
    assert result.json["error"]["code"] == "bad-key"
    assert "wrong-key-0123456789" not in result.out + result.err
    assert not (tmp_path / "config" / "credentials.json").exists()


def test_what_is_no_key_is_refused_before_it_is_sent(
    site: CivitaiServer, civman: Civman, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_key(monkeypatch, "Bearer my secret key")

    result = civman("login")

    assert result.code == 2
    assert "secret" not in result.out + result.err
    assert site.requests == []


def test_a_key_is_kept_for_its_own_site_only(
    site: CivitaiServer, civman: Civman, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_key(monkeypatch, DEMO_TOKEN)
    civman("login", "--no-keyring")
    with CivitaiServer(site.catalogue) as other:
        monkeypatch.setenv("CIVMAN_CIVITAI_URL", other.url)

        result = civman("download", "51207", "--json")

        assert result.json["error"]["code"] == "no-key"
        assert not any("authorization" in request.headers for request in other.requests)


def test_forgetting_a_key_works_twice(site: CivitaiServer, civman: Civman, monkeypatch: pytest.MonkeyPatch) -> None:
    type_key(monkeypatch, DEMO_TOKEN)
    civman("login", "--no-keyring")

    assert civman("login", "--forget", "--json").json["login"]["forgotten"]
    assert not civman("login", "--forget", "--json").json["login"]["forgotten"]


def test_doctor_tells_what_holds_and_where_it_comes_from(online: CivitaiServer, civman: Civman) -> None:
    result = civman("doctor", "--json")

    findings = {finding["name"]: finding for finding in result.json["doctor"]}
    assert result.code == 0
    assert findings["civitai"]["value"] == online.url
    assert findings["civitai"]["source"] == "environment CIVMAN_CIVITAI_URL"
    assert findings["key"]["state"] == "ok"
    assert findings["key"]["source"] == "environment CIVITAI_API_TOKEN"
    assert DEMO_TOKEN not in result.out


def test_doctor_proposes_bfloat16_where_the_processor_has_it(online: CivitaiServer, civman: Civman) -> None:
    torch = pytest.importorskip("torch")
    findings = {finding["name"]: finding for finding in civman("doctor", "--json").json["doctor"]}

    has_it = torch.cpu.get_capabilities().get("avx512_bf16", False)
    assert ("cpu" in findings) == (has_it and findings["gpu"]["state"] == "note")
    if "cpu" in findings:
        assert "--precision bfloat16" in findings["cpu"]["remedy"]


def test_doctor_names_a_bad_key_and_fails(
    online: CivitaiServer, civman: Civman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAI_API_TOKEN", "not-the-demo-key")

    result = civman("doctor")

    assert result.code == 1
    assert "key" in result.err
    assert "not-the-demo-key" not in result.out + result.err


def test_doctor_names_a_library_that_is_a_file(civman: Civman, root: Path) -> None:
    root.write_text("in the way")

    result = civman("doctor", "--offline", "--json")

    assert result.code == 1
    assert result.json["error"]["facts"] == {}
    assert [finding["name"] for finding in result.json["doctor"] if finding["state"] == "bad"] == ["library"]
