"""Encoding prompts: against diffusers where it can, else against values computed here step by step."""

import warnings

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from tiny_adapters import tiny_text_encoders, tiny_unet

from civman.diffusion.text_conditioning import encode
from civman.diffusion.transformers_tokenizer import transformers_tokenizer
from civman.errors import UsageError
from civman.prompts.emphasis import parse
from civman.prompts.tokenizer import END, START, ZERO, clip_tokenizer

FIRST = clip_tokenizer()
SECOND = FIRST.padded_with(ZERO)
PLAIN = [
    "a photo of a cat",
    "",
    "  Été, 3 o'clock: naïve; 猫",
    " ".join(["cat"] * 75),
]


@pytest.fixture(scope="module")
def sd1():
    return tiny_text_encoders("sd1")


@pytest.fixture(scope="module")
def sdxl():
    return tiny_text_encoders("sdxl")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return transformers_tokenizer(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    return transformers_tokenizer(tmp_path_factory.mktemp("tokenizers"), ZERO)


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL(block_out_channels=[8], norm_num_groups=8)


def encode_sd1(encoders, prompt, clip_skip=1, **more):
    return encode(encoders, [FIRST], parse(prompt), clip_skip, **more)


def encode_sdxl(encoders, prompt, clip_skip=1, **more):
    return encode(encoders, [FIRST, SECOND], parse(prompt), clip_skip, **more)


# --- diffusers


@pytest.mark.parametrize("prompt", PLAIN)
def test_plain_prompts_equal_the_sd1_pipeline_bit_for_bit(sd1, words, vae, prompt):
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=sd1[0], tokenizer=words, unet=tiny_unet("sd1"),
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)

    context, pooled = encode_sd1(sd1, prompt)

    assert torch.equal(context, expected)
    assert pooled is None


@pytest.mark.parametrize("prompt", PLAIN)
def test_plain_prompts_equal_the_sdxl_pipeline_bit_for_bit(sdxl, words, padded, vae, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pipeline looks for a watermark package
        pipeline = StableDiffusionXLPipeline(
            vae=vae, text_encoder=sdxl[0], text_encoder_2=sdxl[1], tokenizer=words, tokenizer_2=padded,
            unet=tiny_unet("sdxl"), scheduler=EulerDiscreteScheduler(steps_offset=1), add_watermarker=False,
        )  # fmt: skip
    expected, negative, expected_pooled, negative_pooled = pipeline.encode_prompt(
        prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )

    context, pooled = encode_sdxl(sdxl, prompt)
    empty, empty_pooled = encode_sdxl(sdxl, "", is_negative=True)

    assert torch.equal(context, expected)
    assert torch.equal(pooled, expected_pooled)
    assert torch.equal(empty, negative)
    assert torch.equal(empty_pooled, negative_pooled)


# --- the rules, spelled out


def one_chunk(encoder, words, fragments, padding, *, layer=None, norm=True):
    """Hidden states of one chunk, weighted: plain loops over tokens."""
    ids, weights = [START], [1.0]
    for text, weight in fragments:
        for token in words(text, add_special_tokens=False).input_ids:
            ids.append(token)
            weights.append(weight)
    ids.append(END)
    weights.append(1.0)
    while len(ids) < 77:
        ids.append(padding)
        weights.append(1.0)
    with torch.no_grad():
        states = encoder(torch.tensor([ids]), output_hidden_states=True)
        if layer is None:
            hidden = states.last_hidden_state
        else:
            hidden = states.hidden_states[layer]
            if norm:
                hidden = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
    before = hidden.mean()
    rows = torch.stack([row * weight for row, weight in zip(hidden[0], weights, strict=True)])[None]
    return rows * (before / rows.mean())


def assert_same(ours, expected):
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=2e-6)


def test_emphasis_weighs_tokens_and_keeps_the_mean(sd1, words):
    context, _ = encode_sd1(sd1, "a (red:1.3) cat, [dog] ((x))")

    fragments = [("a ", 1.0), ("red", 1.3), (" cat, ", 1.0), ("dog", 1 / 1.1), (" ", 1.0), ("x", 1.1 * 1.1)]
    expected = one_chunk(sd1[0], words, fragments, END)
    assert_same(context, expected)
    assert torch.allclose(context.mean(), one_chunk(sd1[0], words, [(t, 1.0) for t, _ in fragments], END).mean())


def test_sdxl_weighs_each_encoder_by_itself_and_never_the_pooled_vector(sdxl, words):
    context, pooled = encode_sdxl(sdxl, "a (red:1.3) cat")

    fragments = [("a ", 1.0), ("red", 1.3), (" cat", 1.0)]
    parts = [
        one_chunk(encoder, words, fragments, padding, layer=-2, norm=False)
        for encoder, padding in zip(sdxl, (END, ZERO), strict=True)
    ]
    assert_same(context, torch.cat(parts, -1))
    assert torch.equal(pooled, encode_sdxl(sdxl, "a red cat")[1])


def test_break_and_long_prompts_are_chunks_side_by_side(sd1, words):
    cats = " ".join(["cat"] * 80)

    broken, _ = encode_sd1(sd1, "(a:1.5) BREAK b")
    long, _ = encode_sd1(sd1, f"(dog:0.5) {cats}")

    expected = [one_chunk(sd1[0], words, [(text, weight)], END) for text, weight in (("a", 1.5), ("b", 1.0))]
    assert_same(broken, torch.cat(expected, 1))
    first = [("dog", 0.5), (" ".join(["cat"] * 74), 1.0)]
    expected = [one_chunk(sd1[0], words, part, END) for part in (first, [(" ".join(["cat"] * 6), 1.0)])]
    assert_same(long, torch.cat(expected, 1))


def test_a_chunk_s_bits_do_not_depend_on_its_neighbours(sd1):
    both, _ = encode_sd1(sd1, "a (red:1.2) cat BREAK a dog")

    assert torch.equal(both[:, :77], encode_sd1(sd1, "a (red:1.2) cat")[0])
    assert torch.equal(both[:, 77:], encode_sd1(sd1, "a dog")[0])


def test_sdxl_pools_the_first_chunk_at_its_first_end(sdxl, words):
    _, pooled = encode_sdxl(sdxl, "a cat BREAK a dog")

    ids = words("a cat").input_ids + [ZERO] * (77 - 4)
    with torch.no_grad():
        last = sdxl[1](torch.tensor([ids])).last_hidden_state[0, 3]
        expected = sdxl[1].text_projection.weight @ last
    assert torch.allclose(pooled[0], expected, atol=1e-6)


@pytest.mark.parametrize("clip_skip", [2, 3])
def test_clip_skip_takes_an_earlier_layer_and_norms_it(sd1, words, clip_skip):
    context, _ = encode_sd1(sd1, "a cat", clip_skip)

    assert_same(context, one_chunk(sd1[0], words, [("a cat", 1.0)], END, layer=-clip_skip))
    assert not torch.equal(context, encode_sd1(sd1, "a cat")[0])


@pytest.mark.parametrize("clip_skip", [0, -1, 4])
def test_a_clip_skip_beyond_the_layers_is_an_error(sd1, clip_skip):
    with pytest.raises(UsageError, match="must be 1 to 3"):
        encode_sd1(sd1, "a cat", clip_skip)


def test_sdxl_pays_no_heed_to_clip_skip(sdxl):
    assert torch.equal(encode_sdxl(sdxl, "a cat", 12)[0], encode_sdxl(sdxl, "a cat")[0])


def test_sd2_takes_its_last_built_layer_with_the_norm_whatever_clip_skip_says(sd1, words):
    encoder = tiny_text_encoders("sd1")[0]
    encoder.config.hidden_act = "gelu"

    context, _ = encode([encoder], [SECOND], parse("a cat"), 2)

    assert_same(context, one_chunk(encoder, words, [("a cat", 1.0)], ZERO))


def test_only_an_empty_negative_of_sdxl_is_zeros(sd1, sdxl):
    context, pooled = encode_sdxl(sdxl, "  ", is_negative=True)

    assert context.shape == (1, 77, 56)
    assert not context.any()
    assert not pooled.any()
    assert encode_sdxl(sdxl, "")[0].any()
    assert encode_sdxl(sdxl, "bad", is_negative=True)[0].any()
    assert encode_sd1(sd1, "", is_negative=True)[0].any()


def test_half_precision_encoders_give_half_precision(sd1):
    encoder = tiny_text_encoders("sd1")[0].half()

    context, _ = encode([encoder], [FIRST], parse("a (cat:1.3)"))

    assert context.dtype == torch.float16
    assert torch.allclose(context.float(), encode_sd1(sd1, "a (cat:1.3)")[0], atol=2e-2)
