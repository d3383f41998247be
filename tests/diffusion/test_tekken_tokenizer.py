"""Tekken vocabularies in text encoders' files: the ids are those of Mistral's own package; others are refused."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from civman.diffusion.tekken_tokenizer import read_tekken
from civman.errors import InvalidModelFile

RECORDED = json.loads(gzip.decompress((Path(__file__).parents[1] / "fixtures" / "tekken.json.gz").read_bytes()))
MODEL: str = RECORDED["model"]


def read(**changes: Any) -> Any:
    document = json.loads(MODEL)
    return read_tekken(json.dumps(document | changes).encode(), "Ministral 3 text encoder", "tiny.safetensors")


def test_the_ids_are_those_of_mistral_common() -> None:
    tokenizer = read()

    wrong = [(text, ids, made) for text, ids in RECORDED["ids"] if (made := tokenizer.encode(text)) != ids]

    assert len(RECORDED["ids"]) > 200
    assert wrong == []
    assert (tokenizer.start, tokenizer.end, tokenizer.encode("<pad>")) == (1, 2, [11])


def test_the_ids_are_those_of_transformers(tmp_path: Path) -> None:
    converter = pytest.importorskip("transformers.integrations.mistral.tokenizer").MistralConverter
    (tmp_path / "tekken.json").write_text(MODEL, encoding="utf-8")
    theirs, ours = converter(str(tmp_path / "tekken.json")).converted(), read()
    texts = [text for text, _ in RECORDED["ids"]]

    assert [ours.encode(text) for text in texts] == [theirs.encode(text).ids for text in texts]


def test_names_of_control_tokens_stand_for_these_tokens() -> None:
    tokenizer = read()

    assert tokenizer.encode("[INST]a cat[/INST]") == [3, *tokenizer.encode("a cat"), 4]
    assert tokenizer.encode("<SPECIAL_31>") == [31]
    assert len(tokenizer.encode("<SPECIAL_32>")) > 1
    assert len(tokenizer.encode("[INST")) > 1


def test_a_word_is_joined_by_rank_and_of_equal_ranks_from_the_left() -> None:
    document = json.loads(MODEL)
    words = [bytes([byte]) for byte in range(256)] + [b"ab", b"ba", b"aba"]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode()} for rank, word in enumerate([*words, b"spare"])
    ]
    config = document["config"] | {"default_vocab_size": len(words) + document["config"]["default_num_special_tokens"]}
    tokenizer = read(vocab=vocabulary, config=config)
    first = config["default_num_special_tokens"]

    ab, aba, a, b = (first + words.index(word) for word in (b"ab", b"aba", b"a", b"b"))
    assert tokenizer.encode("ab") == [ab]
    assert tokenizer.encode("aba") == [aba]
    assert tokenizer.encode("bab") == [b, ab]
    assert tokenizer.encode("aaba") == [a, aba]
    assert tokenizer.encode("spare") == [first + byte for byte in b"spare"], "a token beyond the model's vocabulary"


def test_half_a_surrogate_pair_is_read_as_a_question_mark() -> None:
    tokenizer = read()

    assert tokenizer.encode("a \ud83d cat") == tokenizer.encode("a ? cat")


@pytest.mark.parametrize("cut", [0, 1, 99, 5000, -1])
def test_a_broken_document_is_refused(cut: int) -> None:
    with pytest.raises(InvalidModelFile, match=r"the tokenizer of the Ministral 3 text encoder in `tiny\.safetensors`"):
        read_tekken(MODEL.encode()[:cut], "Ministral 3 text encoder", "tiny.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab": []}, {"vocab": json.loads(MODEL)["vocab"][1:]}, {"special_tokens": []}, {"special_tokens": None},
        {"config": {}}, {"config": json.loads(MODEL)["config"] | {"pattern": "("}},
        {"config": json.loads(MODEL)["config"] | {"default_vocab_size": 9999}},
        {"vocab": [{"rank": 0, "token_bytes": "?"}]},
    ],
)  # fmt: skip
def test_an_incomplete_document_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidModelFile, match="cannot be read"):
        read(**changes)
