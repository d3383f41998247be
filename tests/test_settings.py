"""Settings: which source wins, and what is refused."""

from pathlib import Path

import pytest

from civman.errors import ConfigError
from civman.settings import DEFAULT_URL, load_settings


def load(folder: Path, config: Path, **environ: str):
    return load_settings(environ={"CIVMAN_CONFIG_DIR": str(config), **environ}, folder=folder)


def test_the_nearest_project_file_upward_wins_over_the_users(tmp_path: Path) -> None:
    config, project = tmp_path / "config", tmp_path / "project"
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    config.mkdir()
    (config / "config.toml").write_text('library = "/users"\n')
    (project / "civman.toml").write_text('library = "models"\n')

    settings = load(inner, config)

    assert settings.library == project / "models"
    assert settings.sources["library"] == str(project / "civman.toml")


def test_the_environment_wins_over_files_and_a_flag_over_the_environment(tmp_path: Path) -> None:
    (tmp_path / "civman.toml").write_text('library = "models"\n')
    environ = {"CIVMAN_CONFIG_DIR": str(tmp_path), "CIVMAN_LIBRARY": "/from/environment"}

    assert load_settings(environ=environ, folder=tmp_path).library == Path("/from/environment")
    flagged = load_settings(library="/from/flag", environ=environ, folder=tmp_path)

    assert (flagged.library, flagged.sources["library"]) == (Path("/from/flag"), "flag")


def test_without_any_word_the_platforms_data_folder_is_used(tmp_path: Path) -> None:
    settings = load(tmp_path, tmp_path / "config")

    assert settings.sources["library"] == "default"
    assert settings.civitai_url == DEFAULT_URL


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("yes", True), ("0", False), ("off", False)])
def test_offline_understands_the_usual_words(tmp_path: Path, text: str, expected: bool) -> None:
    assert load(tmp_path, tmp_path, CIVMAN_OFFLINE=text).offline is expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CIVMAN_OFFLINE", "perhaps"),
        ("CIVMAN_CIVITAI_URL", "http://civitai.com"),
        ("CIVMAN_CIVITAI_URL", "civitai.com"),
        ("CIVMAN_CIVITAI_URL", "https://user:secret@civitai.com"),
        ("CIVMAN_CIVITAI_URL", "file:///etc/passwd"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_a_remedy(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, tmp_path, **{variable: value})

    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_plain_http_is_fine_on_loopback(tmp_path: Path) -> None:
    assert load(tmp_path, tmp_path, CIVMAN_CIVITAI_URL="http://127.0.0.1:9/").civitai_url == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "word"),
    [("librari = 1\n", "library"), ("library = ", "correct the error"), ('token = "abc"\n', "civman login")],
)
def test_a_broken_project_file_is_named_with_its_remedy(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "civman.toml").write_text(text)

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, tmp_path / "config")

    assert str(tmp_path / "civman.toml") in str(caught.value)
    assert word in caught.value.hint


def test_a_key_never_shows_in_settings(tmp_path: Path) -> None:
    settings = load(tmp_path, tmp_path, CIVITAI_API_TOKEN="0123456789abcdef")

    assert "0123456789abcdef" not in repr(settings)
