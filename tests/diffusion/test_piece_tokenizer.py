"""SentencePiece models in text encoders' files: the ids are those of Google's program; others are refused."""

import base64
import gzip
import json
from pathlib import Path

import pytest

from civman.diffusion.piece_tokenizer import read_pieces
from civman.errors import CannotRender, InvalidModelFile

RECORDED = json.loads(gzip.decompress((Path(__file__).parents[1] / "fixtures" / "pieces.json.gz").read_bytes()))


def model(name: str) -> bytes:
    return base64.b64decode(RECORDED[name]["model"])


@pytest.mark.parametrize("name", ["gemma", "llama", "usual", "unused"])
def test_the_ids_are_those_of_sentencepiece(name: str) -> None:
    tokenizer = read_pieces(model(name), "Gemma 2 text encoder", "tiny.safetensors")

    wrong = [(text, ids, made) for text, ids in RECORDED[name]["ids"] if (made := tokenizer.encode(text)) != ids]

    assert len(RECORDED[name]["ids"]) > 200
    assert wrong == []
    assert tokenizer.start == RECORDED[name]["start"]


def test_the_models_divide_texts_differently() -> None:
    gemma, usual, unused, llama = (
        dict(map(tuple_of, RECORDED[name]["ids"])) for name in ("gemma", "usual", "unused", "llama")
    )

    assert sum(gemma[text] != unused[text] for text in gemma) > 50
    assert sum(len(gemma[text]) != len(usual[text]) for text in gemma) > 50
    assert sum(len(gemma[text]) != len(llama[text]) for text in gemma) > 50
    assert sum(len(usual[text]) != len(llama[text]) for text in gemma) > 10


def tuple_of(row: list[object]) -> tuple[str, tuple[int, ...]]:
    text, ids = row
    return str(text), tuple(ids)  # type: ignore[arg-type]


def test_a_model_of_another_kind_is_refused_by_its_kind() -> None:
    with pytest.raises(CannotRender, match=r"in `tiny\.safetensors`, because it does not use byte-pair encoding"):
        read_pieces(model("unigram"), "Gemma 2 text encoder", "tiny.safetensors")


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 99, 5000, -1])
def test_a_broken_model_is_refused(cut: int) -> None:
    with pytest.raises((InvalidModelFile, CannotRender)):
        read_pieces(model("gemma")[:cut], "Gemma 2 text encoder", "tiny.safetensors")
