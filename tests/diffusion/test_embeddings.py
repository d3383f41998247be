"""Textual inversions: files, widths, and where their vectors end up."""

import pytest
import torch
from tiny_adapters import tiny_text_encoders, write_safetensors

from civman.diffusion.text_conditioning import encode
from civman.diffusion.textual_inversions import load_embedding
from civman.errors import Incompatible, InvalidModelFile, Refused
from civman.prompts.emphasis import parse
from civman.prompts.tokenizer import END, START, ZERO, clip_tokenizer

FIRST = clip_tokenizer()
SECOND = FIRST.padded_with(ZERO)
[CAT] = FIRST.ids("cat")


@pytest.fixture(scope="module")
def sd1():
    return tiny_text_encoders("sd1")


@pytest.fixture(scope="module")
def sdxl():
    return tiny_text_encoders("sdxl")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saved(tmp_path, tensors, name="tinyneg"):
    path = tmp_path / f"{name}.safetensors"
    write_safetensors(path, tensors)
    return path


def with_rows(encoder, ids, rows, padding):
    """Hidden states when the vectors are rows of the table itself, from 49408 on."""
    body = getattr(encoder, "text_model", encoder)
    table = body.embeddings.token_embedding
    plain = table.weight.data
    ids = [START, *ids, END]
    table.weight.data = torch.cat([plain, rows.to(plain)])
    with torch.no_grad():
        states = encoder(torch.tensor([ids + [padding] * (77 - len(ids))]), output_hidden_states=True)
    table.weight.data = plain
    return states


@pytest.mark.parametrize(
    "tensors",
    [
        {"emb_params": drawn(3, 24)},
        {"<tiny>": drawn(3, 24)},
        {"<tiny>": drawn(24)},
        {"emb_params": drawn(3, 24).half(), "step": torch.tensor(100)},
    ],
)
def test_every_layout_of_one_encoder_is_read(tmp_path, tensors):
    embedding = load_embedding(saved(tmp_path, tensors), [24])

    [vectors] = embedding.vectors
    first = next(iter(tensors.values()))
    assert embedding.name == "tinyneg"
    assert torch.equal(vectors, first.float().reshape(-1, 24))
    assert embedding.length == vectors.shape[0]


def test_vectors_act_as_rows_of_the_table_would(tmp_path, sd1):
    vectors = drawn(3, 24)
    embedding = load_embedding(saved(tmp_path, {"emb_params": vectors}), [24])
    before = sd1[0].embeddings.token_embedding.weight.clone()

    context, _ = encode(sd1, [FIRST], parse("a TINYNEG cat"), embeddings=[embedding])

    ids = [*FIRST.ids("a"), 49408, 49409, 49410, CAT]
    assert torch.equal(context, with_rows(sd1[0], ids, vectors, END).last_hidden_state)
    assert torch.equal(sd1[0].embeddings.token_embedding.weight, before)
    assert torch.equal(encode(sd1, [FIRST], parse("a cat"))[0], encode(sd1, [FIRST], parse("a cat"), 1, [embedding])[0])


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_sdxl_gives_each_encoder_its_own_vectors_and_pools_at_the_end_mark(tmp_path, sdxl, keys):
    vectors = [drawn(2, 24), drawn(2, 32, seed=1)]
    path = saved(tmp_path, dict(zip(keys, vectors, strict=True)))
    embedding = load_embedding(path, [24, 32])

    context, pooled = encode(sdxl, [FIRST, SECOND], parse("tinyneg cat"), embeddings=[embedding], is_negative=True)

    ids = [49408, 49409, CAT]
    states = [
        with_rows(encoder, ids, rows, padding)
        for encoder, rows, padding in zip(sdxl, vectors, (END, ZERO), strict=True)
    ]
    assert torch.equal(context, torch.cat([each.hidden_states[-2] for each in states], -1))
    assert torch.equal(pooled, states[1].text_embeds)


def test_emphasis_weighs_all_vectors_of_an_embedding(tmp_path, sd1):
    embedding = load_embedding(saved(tmp_path, {"emb_params": drawn(3, 24)}), [24])

    plain, weighted = (
        encode(sd1, [FIRST], parse(prompt), embeddings=[embedding])[0] for prompt in ("tinyneg", "(tinyneg:2)")
    )

    ratio = (weighted / plain)[0]
    assert torch.allclose(ratio[1:4] / ratio[0], torch.tensor(2.0), rtol=1e-4)
    assert torch.allclose(ratio[4:] / ratio[0], torch.tensor(1.0), rtol=1e-4)


def test_a_second_chunk_may_hold_it_too(tmp_path, sd1):
    embedding = load_embedding(saved(tmp_path, {"emb_params": drawn(3, 24)}), [24])

    context, _ = encode(sd1, [FIRST], parse("cat BREAK tinyneg"), embeddings=[embedding])

    assert torch.equal(context[:, 77:], encode(sd1, [FIRST], parse("tinyneg"), embeddings=[embedding])[0])


@pytest.mark.parametrize(
    ("tensors", "widths"),
    [
        ({"emb_params": drawn(2, 32)}, [24]),
        ({"emb_params": drawn(2, 24)}, [24, 32]),
        ({"clip_l": drawn(2, 24), "clip_g": drawn(2, 32)}, [24]),
    ],
)
def test_an_embedding_of_another_width_is_incompatible(tmp_path, tensors, widths):
    with pytest.raises(Incompatible, match="width") as caught:
        load_embedding(saved(tmp_path, tensors), widths)

    assert caught.value.code == "embedding-width"


def test_the_refiner_takes_the_second_half_of_a_pair(tmp_path):
    second = drawn(2, 32)

    embedding = load_embedding(saved(tmp_path, {"clip_l": drawn(2, 24), "clip_g": second}), [32])

    assert torch.equal(embedding.vectors[0], second)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": drawn(2, 24), "b": drawn(2, 24)},
        {"emb_params": drawn(1, 2, 24)},
        {"emb_params": drawn(0, 24)},
        {},
        {"clip_l": drawn(1, 24), "clip_g": drawn(2, 32)},
        {"emb_params": torch.full((1, 24), torch.nan)},
    ],
)
def test_what_is_no_embedding_is_said_so(tmp_path, tensors):
    with pytest.raises(InvalidModelFile):
        load_embedding(saved(tmp_path, tensors), [24, 32] if "clip_l" in tensors else [24])


@pytest.mark.parametrize("old_format", [True, False])
def test_pickles_are_refused_whatever_they_are_called(tmp_path, old_format):
    path = tmp_path / "tinyneg.safetensors"
    torch.save({"emb_params": drawn(2, 24)}, path, _use_new_zipfile_serialization=not old_format)

    with pytest.raises(Refused) as caught:
        load_embedding(path, [24])

    assert caught.value.code == "pickle"


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"bundle_emb.Cat.emb_params": 0}, "cat"),
        ({"bundle_emb.cat.string_to_param.*": 0}, "cat"),
        ({"bundle_emb.cat.clip_l": 0}, "cat"),
        ({"<s1>": 0}, "<s1>"),
    ],
)
def test_an_embedding_packed_into_an_adapter_is_read_by_its_name(tmp_path, tensors, name):
    vectors, other = (
        drawn(2, 24),
        {"lora_unet_x.lora_up.weight": drawn(2, 2), "bundle_emb.dog.emb_params": drawn(3, 24)},
    )
    write_safetensors(path := tmp_path / "lora.safetensors", {**other, **dict.fromkeys(tensors, vectors)})

    found = load_embedding(path, [24], name=name)

    assert torch.equal(found.vectors[0], vectors)


def test_an_embedding_for_one_of_two_encoders_leaves_the_word_out_of_the_other(tmp_path):
    write_safetensors(path := tmp_path / "style.safetensors", {"emb_params": drawn(2, 24)})

    found = load_embedding(path, [24, 32], allow_partial=True)

    assert (found.length_in(0), found.length_in(1)) == (2, 0)
    assert found.vectors[1] is None


@pytest.mark.parametrize("extra", ["clip_l_out", "clip_g_out"])
def test_a_packed_embedding_with_more_than_vectors_is_refused_by_name(tmp_path, extra):
    tensors = {"bundle_emb.cat.clip_l": drawn(2, 24), f"bundle_emb.cat.{extra}": drawn(2, 24)}
    write_safetensors(path := tmp_path / "lora.safetensors", tensors)

    with pytest.raises(InvalidModelFile, match=extra):
        load_embedding(path, [24], name="cat")
