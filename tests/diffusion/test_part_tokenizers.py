# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Tokenizers in files of their own: what they encode, how they are stored and found, and which ones are refused."""

import base64
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
import tokenizer_files
from diffusion.test_piece_tokenizer import RECORDED
from running import Civman
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from civman.diffusion.families.lumina2 import LUMINA2
from civman.diffusion.families.z_image import Z_IMAGE
from civman.diffusion.file_tokenizers import read_tokenizer
from civman.domain.files.tokenizer_files import JSON, PIECES, TEKKEN, token_count
from civman.errors import InvalidModelFile
from civman.store.blobs import digest_of

TEXTS = [text for text, _ in RECORDED["gemma"]["ids"]]
QUICK = ("--size", "64x64", "--steps", "2", "--seed", "7", "--device", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Lumina 2's transformer, VAE and text encoder (with and without tokenizer), and tokenizers of every kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    tensors = load_file(tiny_flows.write(folder / "whole.safetensors", "lumina2", LUMINA2))
    made = {}
    for name, prefix in (("model", "model."), ("vae", "vae."), ("mute", "text_encoders.gemma2_2b.transformer.")):
        made[name] = folder / f"{name}.safetensors"
        cut = 0 if name == "model" else len(prefix)
        save_file({key[cut:]: value for key, value in tensors.items() if key.startswith(prefix)}, made[name])
    made["encoder"] = folder / "encoder.safetensors"
    own = {PIECES: tensors[f"text_encoders.{PIECES}"]}
    save_file(load_file(made["mute"]) | own, made["encoder"])
    for name, content in {
        "tokenizer.model": tiny_flows.piece_model(),
        "unigram.model": base64.b64decode(RECORDED["unigram"]["model"]),
        "short.model": tiny_flows.piece_model()[:5000],
        "tokenizer.json": tokenizer_files.json_tokenizer(TEXTS, 790, start="<bos>").to_str(pretty=True).encode(),
        "small.json": tokenizer_files.json_tokenizer(TEXTS, 700).to_str().encode(),
        "tekken.json": tiny_flows.tekken_model(),
        "error.json": b'{"error": "not found", "added": []}',
    }.items():
        made[name] = folder / name
        made[name].write_bytes(content)
    return made


@pytest.mark.parametrize(("start", "end"), [("", ""), ("<bos>", ""), ("", "</s>"), ("<bos>", "</s>")])
def test_a_tokenizer_json_gives_its_librarys_ids_without_truncation_and_knows_its_ends(start: str, end: str) -> None:
    made = tokenizer_files.json_tokenizer(TEXTS[:60], 400, start=start, end=end)
    made.enable_truncation(5)
    made.enable_padding(length=9)
    plain = Tokenizer.from_str(made.to_str())
    plain.no_truncation()
    plain.no_padding()

    data = made.to_str().encode()
    tokenizer = read_tokenizer(JSON, data, "text encoder", "tokenizer.json")

    for text in TEXTS:
        assert tokenizer.encode(text) == plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.start == (made.token_to_id(start) if start else None)
    assert tokenizer.end == (made.token_to_id(end) if end else None)
    assert token_count(JSON, data) == made.get_vocab_size()


@pytest.mark.parametrize(
    ("tensor", "data"),
    [
        (JSON, b"{}"), (JSON, b'{"added_tokens": [], "model": {"vocab": {}}}'), (JSON, b"\xff"), (JSON, b"[" * 9999),
        (TEKKEN, b"{}"), (TEKKEN, b'{"config": {"pattern": "."}}'), (TEKKEN, b"\xff"), (PIECES, b"\n\x03\n\x01a"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_refused(tensor: str, data: bytes) -> None:
    with pytest.raises(InvalidModelFile):
        read_tokenizer(tensor, data, "text encoder", "file")
    with pytest.raises(InvalidModelFile):
        token_count(tensor, data)


@pytest.mark.parametrize(
    ("file", "variant"),
    [("tokenizer.model", "sentencepiece 786"), ("tokenizer.json", "tokenizers 790"), ("tekken.json", "tekken 632")],
)
def test_a_tokenizer_is_imported_identified_and_found_again(
    civman: Civman, files: dict[str, Path], file: str, variant: str
) -> None:
    done = civman("import", "--offline", "--copy", files[file], "--json")
    seen = civman("inspect", file, "--json")
    listed = civman("list", "--json")

    assert done.code == seen.code == 0, done.err + seen.err
    assert seen.json["inspect"]["tensors_show"]["kind"] == "tokenizer"
    assert seen.json["inspect"]["tensors_show"]["variant"] == variant
    (asset,) = listed.json["list"]["assets"]
    assert Path(asset["path"]).suffix == Path(file).suffix
    assert asset["facts"]["kind"] == "tokenizer"
    assert civman("verify").code == 0


@pytest.mark.parametrize("file", ["short.model", "unigram.model", "error.json"])
def test_what_is_no_usable_tokenizer_is_not_imported(civman: Civman, files: dict[str, Path], file: str) -> None:
    done = civman("import", "--offline", files[file], "--json")

    assert done.json["import"]["taken"] == 0, done.out
    assert done.code != 0


def drawn(civman: Civman, files: dict[str, Path], out: Path, encoder: str, *more: object) -> Any:
    parts = ("--vae", files["vae"], "--part", f"gemma2={files[encoder]}")
    return civman("render", files["model"], "a (cat:1.2), a dog", *QUICK, *parts, *more, "--json", "-o", out)


def test_a_separate_tokenizer_draws_the_image_of_the_encoders_own_one_and_is_in_the_recipe(
    civman: Civman, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = drawn(civman, files, tmp_path / "a.png", "encoder")
    given = drawn(civman, files, tmp_path / "b.png", "mute", "--part", f"tokenizer={files['tokenizer.model']}")
    assert civman("import", "--offline", files["tokenizer.model"], files["small.json"]).code == 0
    found = drawn(civman, files, tmp_path / "c.png", "mute")
    again = civman("replay", tmp_path / "c.png", "--json", "-o", tmp_path / "d.png")

    assert given.code == found.code == whole.code == 0, given.err + found.err + whole.err
    (one,), (two,), (three,) = (each.json["render"] for each in (whole, given, found))
    assert one["pixel_sha256"] == two["pixel_sha256"] == three["pixel_sha256"]
    digests = {part["role"]: part["sha256"] for part in two["recipe"]["parts"]}
    assert digests["tokenizer"] == digest_of(files["tokenizer.model"])
    assert two["recipe"] == three["recipe"]
    assert "the only stored file that fits" in found.out + found.err
    assert again.code == 0, again.err


def test_another_tokenizer_draws_another_image(civman: Civman, files: dict[str, Path], tmp_path: Path) -> None:
    pieces = drawn(civman, files, tmp_path / "a.png", "mute", "--part", f"tokenizer={files['tokenizer.model']}")
    other = drawn(civman, files, tmp_path / "b.png", "encoder", "--part", f"tokenizer={files['tokenizer.json']}")

    assert pieces.code == other.code == 0, other.err
    assert pieces.json["render"][0]["pixel_sha256"] != other.json["render"][0]["pixel_sha256"]


@pytest.mark.parametrize(
    ("file", "cause", "words"),
    [
        ("small.json", "mismatched-parts", "it has 700 tokens, but the text encoder has 800 embeddings"),
        ("tekken.json", "mismatched-parts", "a tokenizer of the kind spiece_model or tokenizer_json"),
        ("vae", "wrong-kind", "is not a tokenizer"), ("short.model", "invalid-model-file", "cannot be read"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_does_not_fit_is_refused_before_loading(
    civman: Civman, files: dict[str, Path], tmp_path: Path, file: str, cause: str, words: str
) -> None:
    done = drawn(civman, files, tmp_path / "a.png", "mute", "--part", f"tokenizer={files[file]}", "--dry-run")

    assert done.code != 0
    assert cause in done.out + done.err, done.err
    assert words in done.out + done.err


def test_two_stored_tokenizers_that_fit_are_listed_and_a_missing_one_is_named(
    civman: Civman, files: dict[str, Path], tmp_path: Path
) -> None:
    missing = drawn(civman, files, tmp_path / "a.png", "mute", "--dry-run")
    assert civman("import", "--offline", files["tokenizer.model"], files["tokenizer.json"]).code == 0
    two = drawn(civman, files, tmp_path / "a.png", "mute", "--dry-run")
    chosen = drawn(civman, files, tmp_path / "a.png", "mute", "--dry-run", "--part", "tokenizer=tokenizer.json")

    assert "missing-part" in missing.out + missing.err
    assert "--part tokenizer=FILE" in missing.out + missing.err
    assert "2 stored files could be the tokenizer" in two.out + two.err
    assert chosen.code == 0, chosen.err


def test_another_family_takes_no_tokenizer(civman: Civman, tmp_path: Path) -> None:
    tensors = tiny_flows.original_tensors("z-image", Z_IMAGE, tiny_flows.modules("z-image"))
    save_file({key: value for key, value in tensors.items() if key.startswith("model.")}, tmp_path / "z.safetensors")

    done = civman("render", tmp_path / "z.safetensors", "a cat", *QUICK, "--part", "tokenizer=x", "--dry-run")

    assert done.code != 0
    assert "`tokenizer=x` does not specify a part of Z-Image" in done.err


def test_a_recipe_whose_tokenizer_is_gone_names_it(civman: Civman, files: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own.model"
    own.write_bytes(files["tokenizer.model"].read_bytes())
    made = drawn(civman, files, tmp_path / "a.png", "mute", "--part", f"tokenizer={own}")
    assert made.code == 0, made.err
    own.write_bytes(own.read_bytes() + b"\x1a\0")

    again = civman("replay", tmp_path / "a.png", "-o", tmp_path / "b.png")

    assert again.code != 0
    assert "missing-files" in again.err
    assert "missing: part `own.model`" in again.err
