# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""ComfyUI's prompts: brackets, chunks and embeddings by its rules written a second time, encoded by real encoders."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tiny_adapters import tiny_text_encoders

from civman.diffusion.changing_prompts import joined
from civman.diffusion.denoiser import Encoded
from civman.diffusion.text_conditioning import encode
from civman.diffusion.textual_inversions import Embedding
from civman.prompts import comfyui_chunks, comfyui_syntax
from civman.prompts.tokenizer import END, START, clip_tokenizer

TOKENIZER = clip_tokenizer()


def weights_of(text: str, weight: float = 1.0) -> list[tuple[str, float]]:
    """Pairs of text and weight, with a counter of open brackets instead of civman's generator."""
    parts: list[str] = []
    level, current = 0, ""
    for letter in text:
        level += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "(" and level == 1:
            parts, current = [*parts, current], ""
        current += letter
        if letter == ")" and level == 0:
            parts, current = [*parts, current], ""
    found: list[tuple[str, float]] = []
    for part in filter(None, [*parts, current]):
        if not re.fullmatch(r"\(.*\)", part, re.DOTALL):
            found.append((part, weight))
            continue
        inner, own = part[1:-1], weight * 1.1
        before, colon, number = inner.rpartition(":")
        if colon and before:
            try:
                inner, own = before, float(number)
            except ValueError:
                inner = part[1:-1]
        found += weights_of(inner, own)
    return found


def escaped(text: str) -> list[tuple[str, float]]:
    pairs = weights_of(text.replace("\\)", "\0\1").replace("\\(", "\0\2"))
    return [(each.replace("\0\1", ")").replace("\0\2", "("), weight) for each, weight in pairs]


PIECES = [*"()()(ab ,:[]\\", "1.3", ":0.5)", "\\(", "BREAK", " AND ", "<lora:x:1>"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_brackets_have_comfyui_s_meaning(text: str) -> None:
    made = [(each.text, each.weight) for each in comfyui_syntax.parse(text).sections[0]]

    assert made == escaped(text)


def test_a_weight_replaces_those_of_the_brackets_around_it() -> None:
    made = comfyui_syntax.parse("((a) (b:0.5) (c:x)) [d] \\(e\\)").sections[0]

    found = [(each.text, round(each.weight, 6)) for each in made if each.text.strip()]
    assert found == [("a", 1.21), ("b", 0.5), ("c:x", 1.21), (" [d] (e)", 1.0)]


WORDS = "a photo of red green blue grass castle, mountain river tree under the evening sky "


@pytest.mark.parametrize("length", [70, 75, 76, 150, 200])
@pytest.mark.parametrize("tail", ["short", "long"])
def test_chunks_are_divided_as_in_comfyui(length: int, tail: str) -> None:
    words = (WORDS * 20).split()[:length]
    last = "five more of them now" if tail == "short" else " ".join(["word"] * 12)
    parsed = comfyui_syntax.parse(f"{' '.join(words)} ({last}:1.5)")

    chunks = comfyui_chunks.cut(parsed, TOKENIZER, {})

    first = TOKENIZER.ids(" ".join(words) + " ")
    second = TOKENIZER.ids(last)
    wanted: list[list[int]] = [[]]
    for group in (first, second):
        if len(group) >= 8:  # long groups fill up chunks
            for token in group:
                if len(wanted[-1]) == 75:
                    wanted.append([])
                wanted[-1].append(token)
        else:
            if len(wanted[-1]) + len(group) > 75:
                wanted.append([])
            wanted[-1] += group
    assert [list(chunk.ids) for chunk in chunks] == wanted
    assert sum(weight == 1.5 for chunk in chunks for weight in chunk.weights) == len(second)


def hidden(encoder: Any, ids: list[int], padding: int, place: int, *, normed: bool) -> Any:
    """Hidden states of one chunk, straight from transformers."""
    tokens = torch.tensor([[START, *ids, END] + [padding] * (75 - len(ids))])
    with torch.no_grad():
        states = encoder(tokens, output_hidden_states=True).hidden_states[-place]
        model = getattr(encoder, "text_model", encoder)
        return model.final_layer_norm(states) if normed else states


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_weights_move_vectors_away_from_those_of_the_empty_prompt(family: str, clip_skip: int) -> None:
    encoders = tiny_text_encoders(family)
    paddings = [END, 0][: len(encoders)]
    tokenizers = [TOKENIZER.padded_with(padding) for padding in paddings]

    made, _ = encode(encoders, tokenizers, comfyui_syntax.parse("a (cat:1.5) on (grass:0.3)"), clip_skip,
                     emphasis="comfyui")  # fmt: skip

    pieces = [("a ", 1.0), ("cat", 1.5), (" on ", 1.0), ("grass", 0.3)]
    ids = [(token, weight) for text, weight in pieces for token in TOKENIZER.ids(text)]
    weights = torch.ones(77)
    weights[1 : 1 + len(ids)] = torch.tensor([weight for _, weight in ids])
    parts = []
    for encoder, padding in zip(encoders, paddings, strict=True):
        is_one = family == "sd1"
        z, empty = (
            hidden(encoder, given, padding, clip_skip, normed=is_one) for given in ([token for token, _ in ids], [])
        )
        parts.append(empty + weights[None, :, None] * (z - empty))
    assert torch.allclose(made, torch.cat(parts, dim=-1), atol=1e-5)


def test_an_empty_negative_prompt_of_sdxl_is_encoded() -> None:
    encoders = tiny_text_encoders("sdxl")
    tokenizers = [TOKENIZER, TOKENIZER.padded_with(0)]
    empty = comfyui_syntax.parse("")

    context, pooled = encode(encoders, tokenizers, empty, 2, is_negative=True, emphasis="comfyui")

    wanted = torch.cat([hidden(each, [], pad, 2, normed=False) for each, pad in zip(encoders, (END, 0), strict=True)],
                       dim=-1)  # fmt: skip
    assert torch.allclose(context, wanted, atol=1e-6)
    assert pooled is not None
    assert pooled.abs().sum() > 0


@pytest.mark.parametrize(
    ("text", "found", "left"),
    [
        ("a embedding:dream, b", "dream", "a , b"), ("embedding:dream", "dream", ""),
        ("(embedding:dream:1.2) c", "dream", " c"), ("a\nembedding:dream b", "dream", "a b"),
        ("aembedding:dream", None, "aembedding:dream"), ("a embedding:other b", None, "a b"),
        ("a embedding:other, b", None, "a , b"), ("a dream", None, "a dream"),
    ],
)  # fmt: skip
def test_embeddings_are_named_as_in_comfyui(text: str, found: str | None, left: str) -> None:
    [chunk] = comfyui_chunks.cut(comfyui_syntax.parse(text), TOKENIZER, {"dream": 3})

    assert [insert.name for insert in chunk.inserts] == ([found] if found else [])
    places = {place for insert in chunk.inserts for place in range(insert.offset, insert.offset + insert.length)}
    kept = [token for place, token in enumerate(chunk.ids) if place not in places]
    assert kept == [token for part in re.split(r"(?<=a) (?=,)", left) for token in TOKENIZER.ids(part)]


def test_an_embedding_of_many_vectors_is_divided() -> None:
    lengths = {"many": 20, "few": 5}
    many = comfyui_chunks.cut(comfyui_syntax.parse("word " * 70 + "embedding:many"), TOKENIZER, lengths)
    few = comfyui_chunks.cut(comfyui_syntax.parse("word " * 72 + "embedding:few"), TOKENIZER, lengths)

    assert [(each.offset, each.length, each.begin) for chunk in many for each in chunk.inserts] == [
        (70, 5, 0),
        (0, 15, 5),
    ]
    assert [len(chunk.ids) for chunk in few] == [72, 5]


def test_vectors_of_a_divided_embedding_reach_the_encoder() -> None:
    [encoder] = tiny_text_encoders("sd1")
    vectors = torch.randn(20, encoder.config.hidden_size)
    seen: list[Any] = []
    inner = getattr(encoder, "text_model", encoder).encoder
    inner.register_forward_pre_hook(lambda _m, _a, named: seen.append(named["inputs_embeds"]), with_kwargs=True)

    encode([encoder], [TOKENIZER], comfyui_syntax.parse("word " * 70 + "embedding:many"),
           embeddings=[Embedding("many", (vectors,))], emphasis="comfyui")  # fmt: skip

    positions = getattr(encoder, "text_model", encoder).embeddings.position_embedding.weight
    assert torch.allclose(seen[0][0, 71:76], vectors[:5] + positions[71:76], atol=1e-6)
    assert torch.allclose(seen[1][0, 1:16], vectors[5:] + positions[1:16], atol=1e-6)


def test_texts_are_joined_as_comfyui_s_nodes_join_them() -> None:
    one, two, long = (Encoded(torch.randn(1, n, 4), torch.randn(1, 3)) for n in (77, 77, 154))
    assert one.pooled is not None
    assert long.pooled is not None
    assert two.pooled is not None

    [both] = joined(one, [("concat", 1.0, long)])
    assert torch.equal(both.context, torch.cat([one.context, long.context], 1))
    assert both.pooled is one.pooled
    [mixed] = joined(one, [("average", 0.7, long)])
    assert torch.allclose(mixed.context, one.context * 0.7 + long.context[:, :77] * 0.3)
    assert torch.allclose(mixed.pooled, one.pooled * 0.7 + long.pooled * 0.3)
    [filled] = joined(long, [("average", 0.25, one)])
    assert torch.allclose(filled.context[:, 77:], long.context[:, 77:] * 0.25)
    first, second = joined(one, [("combine", 1.0, two), ("concat", 1.0, long)])
    assert torch.equal(first.context, torch.cat([one.context, long.context], 1))
    assert torch.equal(second.context, torch.cat([two.context, long.context], 1))
