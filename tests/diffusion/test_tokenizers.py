"""T5's and Qwen's tokenizers: the ids of two independent programs each, the size of the vocabularies, cutting off."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from civman.diffusion.tokenizers import load_tokenizer

RECORDED = json.loads(gzip.decompress((Path(__file__).parents[1] / "fixtures" / "token_ids.json.gz").read_bytes()))


@pytest.mark.parametrize("name", ["t5", "qwen"])
def test_the_ids_are_those_of_two_other_programs(name) -> None:
    tokenizer = load_tokenizer(name)

    wrong = [(text, ids, tokenizer.encode(text)) for text, ids in RECORDED[name] if tokenizer.encode(text) != ids]

    assert len(RECORDED[name]) > 200
    assert wrong == []


def test_each_vocabulary_is_whole() -> None:
    t5, qwen = load_tokenizer("t5").words, load_tokenizer("qwen").words

    assert t5.get_vocab_size() == 32100
    assert qwen.get_vocab_size() == 151643 + 26
    assert [t5.token_to_id(token) for token in ("<pad>", "</s>", "<unk>", "<extra_id_99>", "<extra_id_0>")] == [
        0, 1, 2, 32000, 32099,
    ]  # fmt: skip


def test_qwen_s_chat_markup_is_one_token_each() -> None:
    text = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    ids = load_tokenizer("qwen").encode(text)

    assert ids == [151644, 872, 198, 64, 8251, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]


@pytest.mark.parametrize("name", ["t5", "qwen"])
def test_a_text_that_fits_is_left_alone(name) -> None:
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode("a photo of a cat")

    fitted = tokenizer.fit("a photo of a cat", len(ids))

    assert (fitted.ids, fitted.dropped, fitted.note) == (ids, 0, "")


def test_a_long_text_is_cut_before_its_end_token_and_the_note_names_what_is_left_out() -> None:
    text = "cat " * 600 + "and at last a harbour at dawn"
    tokenizer = load_tokenizer("t5")

    fitted = tokenizer.fit(text, 512)

    assert fitted.ids == [*tokenizer.encode(text)[:511], 1]
    assert fitted.dropped == len(tokenizer.encode(text)) - 512
    assert f"has {len(tokenizer.encode(text))} tokens, but T5 reads 512 at most: `cat cat" in fitted.note


def test_the_left_out_words_are_quoted_from_the_text() -> None:
    fitted = load_tokenizer("qwen").fit("a photo of a café at dawn", 4)

    assert fitted.ids == load_tokenizer("qwen").encode("a photo of a")
    assert "`café at dawn` is left out" in fitted.note


@pytest.mark.parametrize("name", ["t5", "qwen"])
def test_no_limit_is_exceeded(name) -> None:
    for limit in range(1, 9):
        assert len(load_tokenizer(name).fit("a photo of a cat", limit).ids) <= limit


def test_loading_needs_no_network_and_no_torch() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "from civman.diffusion.tokenizers import load_tokenizer\n"
        "load_tokenizer('t5'), load_tokenizer('qwen')\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
