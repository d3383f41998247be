# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A1111's four rules of emphasis, computed by hand from vectors without weights; negatives of another length."""

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tiny_adapters import tiny_text_encoders

from civman.diffusion.denoiser import Conditioning, Denoiser, Guidance
from civman.diffusion.noise_levels import NoiseLevels
from civman.diffusion.text_conditioning import encode
from civman.prompts.emphasis import Fragment, ParsedPrompt, parse
from civman.prompts.syntaxes import parse_by
from civman.prompts.tokenizer import clip_tokenizer

PROMPT = "a (cat:1.5) and [dog] \\(x\\) BREAK grass"


def unweighted(parsed: ParsedPrompt) -> ParsedPrompt:
    sections = tuple(tuple(Fragment(each.text, 1.0) for each in section) for section in parsed.sections)
    return replace(parsed, sections=sections)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_rule_gives_what_a1111_computes(family: str) -> None:
    encoders = tiny_text_encoders(family)
    tokenizers = [clip_tokenizer().padded_with(49407 if number == 0 else 0) for number in range(len(encoders))]
    parsed = parse(PROMPT)
    made = {
        rule: encode(encoders, tokenizers, parse_by(rule, PROMPT), emphasis=rule)[0]
        for rule in ("original", "no norm", "ignore", "none")
    }
    plain = encode(encoders, tokenizers, unweighted(parsed))[0]
    raw = encode(encoders, tokenizers, ParsedPrompt(PROMPT, ((Fragment(PROMPT, 1.0),),)))[0]

    assert torch.equal(made["ignore"], plain)
    assert torch.equal(made["none"], raw)
    assert made["none"].shape[1] == 77, "BREAK is a word"
    tokens = [
        (len(clip_tokenizer().ids(fragment.text)), fragment.weight) for fragment in parsed.sections[0]
    ]  # fmt: skip
    weights = torch.ones(77)
    at = 1
    for count, weight in tokens:
        weights[at : at + count] = weight
        at += count
    start = 0
    for width in (int(encoder.config.hidden_size) for encoder in encoders):
        z = plain[:, :77, start : start + width].float()
        scaled = z * weights[None, :, None]
        assert torch.allclose(made["no norm"][:, :77, start : start + width], scaled, atol=1e-5)
        restored = scaled * (z.mean() / scaled.mean())
        assert torch.allclose(made["original"][:, :77, start : start + width], restored, atol=1e-4)
        start += width


def test_a_negative_prompt_of_another_length_is_cut_or_extended() -> None:
    seen: list[Any] = []

    class Unet:
        config: Any = None

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def __call__(self, x: Any, _time: Any, encoder_hidden_states: Any, **_: Any) -> tuple[Any]:
            seen.append(encoder_hidden_states.clone())
            return (x,)

    model: Any = type("Model", (), {"unet": Unet(), "prediction": "epsilon", "device": torch.device("cpu"),
                                    "family": type("F", (), {"is_xl": False})})()  # fmt: skip
    long, short = torch.randn(1, 154, 4), torch.randn(1, 77, 4)
    for cond, uncond, wanted in (
        (long, short, torch.cat([short, short[:, -1:].expand(-1, 77, -1)], dim=1)), (short, long, long[:, :77]),
        (short, short * 2, short * 2),
    ):  # fmt: skip
        seen.clear()
        denoiser = Denoiser(model, Conditioning(cond, uncond), NoiseLevels.of_model(),
                            guidance=Guidance(7.0, fits_negative=True), size=(64, 64))  # fmt: skip
        denoiser(torch.randn(1, 4, 2, 2), 1.0)
        assert torch.equal(seen[0], torch.cat([cond, wanted]))


def test_tags_are_cut_from_plain_text_too() -> None:
    assert parse_by("none", "a (b <lora:x:1>").text == "a (b "
    assert parse_by("ignore", "a (b:1.2)").sections == parse("a (b:1.2)").sections
