"""`list --fits` lists exactly what `check` accepts, and reads every header once."""

from pathlib import Path

import pytest
from running import Civman

from civman.demo.demo_weights import sd1_checkpoint, sd1_embedding, sd1_lora, sdxl_lora, vae
from civman.domain.compatibility import RULES
from civman.domain.events import Started
from civman.library import Library


@pytest.fixture
def folder(tmp_path: Path, civman: Civman) -> Path:
    files = {
        "base": sd1_checkpoint("a"), "other": sd1_checkpoint("b"), "ink": sd1_lora("a", tags={}),
        "xl": sdxl_lora("a", tags={}), "word": sd1_embedding("a"), "vae": vae("a"),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / f"{name}.safetensors").write_bytes(data)
    (tmp_path / "models" / "odd.safetensors").write_bytes(_odd())
    assert civman("import", "--offline", tmp_path / "models").code == 0
    return tmp_path / "models"


def _odd() -> bytes:
    from civman.demo.demo_weights import safetensors_bytes

    return safetensors_bytes({"something.weight": (4, 4)}, seed="odd")


def listed(civman: Civman) -> set[str]:
    return {Path(each["path"]).stem for each in civman("list", "--fits", "base", "--json").json["list"]["assets"]}


def test_it_lists_exactly_what_check_accepts(folder: Path, civman: Civman) -> None:
    options = {"ink": "--lora", "xl": "--lora", "word": "--embedding", "vae": "--vae", "odd": "--lora"}

    accepted = {
        name
        for name, option in options.items()
        if civman("check", folder / "base.safetensors", option, folder / f"{name}.safetensors").code == 0
    }

    assert {"ink", "word", "vae"} <= accepted
    assert listed(civman) == accepted


def test_a_header_is_read_once_for_each_checkpoint(folder: Path, civman: Civman, root: Path) -> None:
    first = listed(civman)
    read: list[Started] = []

    with Library.open(root, offline=True) as library:
        fits = library.files.fits(
            "base", on_event=lambda event: read.extend([event] if isinstance(event, Started) else [])
        )

    assert read == []
    assert fits.rules == RULES
    assert listed(civman) == first


def test_verdicts_of_earlier_rules_are_made_again(folder: Path, civman: Civman, root: Path) -> None:
    from dataclasses import replace

    with Library.open(root, offline=True) as library:
        fits = library.files.fits("base")
        ink = library.files.find("ink")[0]
        library.context.index.save_verdicts(replace(fits, rules=RULES - 1), [(ink, "cannot work")])

        missing = {asset.name for asset in library.context.index.without_verdict(fits)}

    assert missing == {"ink.safetensors"}
    assert "ink" in listed(civman)


def test_a_file_without_a_verdict_now_is_not_listed_and_is_tried_again(folder: Path, civman: Civman) -> None:
    ink = folder / "ink.safetensors"
    data = ink.read_bytes()
    ink.unlink()

    assert "ink" not in listed(civman)
    ink.write_bytes(data)
    assert "ink" in listed(civman)
