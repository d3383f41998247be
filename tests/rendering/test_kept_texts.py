# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A text that was encoded for one plan is not encoded again for the next one, and gives the same image."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from running import Civman
from tiny_adapters import low_rank, write_safetensors

from civman.diffusion.environment import threads
from civman.diffusion.kept_texts import KeptTexts
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.render_request import LoraRequest, RenderRequest
from civman.library import Library
from civman.planning.plan_types import Planned
from civman.rendering.draw import draw
from civman.rendering.warm_engines import WarmEngines

ONE = Machine("cpu", threads=1)
QUICK: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "guidance_scale": 3.0, "sampler": "Euler", "seed": 1}


class Watched:
    """Loaded models that count how many chunks of text their first text encoder encodes."""

    def __init__(self, *, keeps: bool = True) -> None:
        """`keeps`: whether texts are kept from one plan to the next."""
        self.keeps = keeps
        self.warm = WarmEngines(2**40)
        self.count = 0
        self._watched: set[int] = set()

    def draw(self, planned: Planned) -> tuple[int, str, tuple[str, ...]]:
        """Render; returns how many chunks of text were encoded, the image's SHA-256 and its notes."""
        engine = self.warm.engine(planned, ONE, lambda _: None)
        if id(engine) not in self._watched:
            self._watched.add(id(engine))
            engine.encoders[0].register_forward_hook(self._add)
        if not self.keeps:
            engine.texts = KeptTexts()
        before = self.count
        (made,) = draw([planned], ONE, warm=self.warm)
        return self.count - before, made.record.pixel_sha256, made.record.notes

    def _add(self, *_: object) -> None:
        self.count += 1


@pytest.fixture
def with_text_lora(stocked: Path, civman: Civman, tmp_path: Path) -> Path:
    """A LoRA for CLIP, besides the stock."""
    names = {f"lora_te_text_model_encoder_layers_0_self_attn_{part}_proj": torch.nn.Linear(24, 24) for part in "qv"}
    write_safetensors(tmp_path / "words.safetensors", low_rank(names, 5, size=0.8))
    assert civman("import", "--offline", tmp_path / "words.safetensors").code == 0
    return stocked


@pytest.mark.usefixtures("with_text_lora")
def test_what_is_encoded_once_is_kept_and_gives_the_same_image(library: Library) -> None:
    words = {"prompt": "a (red:1.2) cat", "negative_prompt": "blurry"}
    long, split = "a cat, " * 60, "a [cat:dog:0.5]"
    cases: list[tuple[dict[str, Any], int]] = [
        (words, 2),
        ({**words, "seed": 2, "sampler": "Euler a", "guidance_scale": 5.0}, 0),
        ({**words, "prompt": "blurry"}, 1),
        ({**words, "clip_skip": 2}, 2),
        ({**words, "emphasis": "no norm"}, 2),
        ({**words, "loras": (LoraRequest("ink"),)}, 2),
        ({**words, "loras": (LoraRequest("ink", 0.3, 1.0),)}, 0),
        ({**words, "loras": (LoraRequest("words"),)}, 2),
        ({**words, "loras": (LoraRequest("words", 1.0, 0.5),)}, 2),
        ({**words, "loras": (LoraRequest("words", 0.2, 0.0),)}, 0),
        ({**words, "prompt": "easydream", "embeddings": ("easydream",)}, 2),
        ({**words, "prompt": "easydream"}, 0),
        ({**words, "prompt": long, "pad_prompts": True}, 4),
        ({**words, "prompt": long, "steps": 2, "pad_prompts": True}, 0),
        ({**words, "prompt": split, "steps": 2}, 2),
        (words, 0),
    ]  # fmt: skip
    watched, forgetful = Watched(), Watched(keeps=False)
    for number, (change, wanted) in enumerate(cases):
        planned = library.plan(RenderRequest(**{"checkpoint": "tiny-sd1"} | QUICK | change))
        count, made, _ = watched.draw(planned)
        _, alone, _ = forgetful.draw(planned)
        assert (number, made) == (number, alone)
        assert (number, count) == (number, wanted)


def test_a_kept_text_repeats_its_notes(library: Library, tmp_path: Path) -> None:
    from civman.diffusion.families.flux1 import FLUX1

    path, watched = tiny_flows.write(tmp_path / "flux.safetensors", "flux1", FLUX1), Watched()
    long = "a cat, " * 200
    usual: dict[str, Any] = QUICK | {"checkpoint": str(path), "prompt": long, "guidance_scale": 1.0}

    first = watched.draw(library.plan(RenderRequest(**usual)))
    second = watched.draw(library.plan(RenderRequest(**usual | {"seed": 2})))
    short = watched.draw(library.plan(RenderRequest(**usual | {"prompt": "a cat"})))

    assert (first[0], second[0], short[0]) == (1, 0, 1)
    assert any("CLIP" in note for note in first[2])
    assert second[2] == first[2]
    assert not any("CLIP" in note for note in short[2])


def test_texts_are_kept_up_to_a_size_and_by_the_number_of_threads() -> None:
    kept, made = KeptTexts(3 * 4 * 10), []

    def get(key: str) -> None:
        def encode() -> Any:
            made.append(key)
            return torch.zeros(1, 10), None, ()

        kept.get(key, encode)

    for key in "abca" + "d" + "ab":
        get(key)
    assert "".join(made) == "abcdb", "the least recently used text is dropped"
    assert len(kept) == 3

    with threads(torch.get_num_threads() + 1):
        get("a")
    assert made[-1] == "a"
