"""What settings mean depends on the program and the version that wrote them: rules that changed, and old entries."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from running import Civman

from civman.errors import UsageError
from civman.pictures.site_settings import Entries
from civman.planning.redraw import redraw
from civman.planning.redraw_prompts import as_in_version
from civman.prompts import editing, emphasis

PLAIN: dict[str, Any] = {
    "prompt": "a cat", "negativePrompt": "bad", "steps": 20, "sampler": "Euler a", "cfgScale": 7, "seed": 5,
    "Size": "512x512", "Model": "some-model", "Model hash": "bb4f4d123e", "Version": "v1.10.1", "VAE": "None",
}  # fmt: skip
PIECES = ("(", ")", "[", "]", ":", "1.5", "-2", " ", "x", ".5", "5.", "\n", ",", "\\(", "AND", " AND ")
PROMPTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def read(**changes: Any) -> dict[str, Any]:
    meta = {key: value for key, value in (PLAIN | changes).items() if value is not None}
    return redraw({"id": 1, "baseModel": "SD 1.5", "meta": meta}).value()


def version(name: str | None) -> Entries:
    return Entries({"Version": name} if name else {})


def old_weights(prompt: str) -> list[tuple[str, float]]:
    """The weight of each character before A1111 1.6: no space may stand beside the number of a weight."""
    letters: list[list[Any]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    place = 0
    while place < len(prompt):
        letter, number = prompt[place], re.compile(r":([+-]?[.0-9]+)\)").match(prompt, place)
        close = {")": "(", "]": "["}.get(letter, "")
        step, factor = 1, 1.1 if letter == ")" else 1 / 1.1
        if number and opened["("]:
            close, step, factor = "(", len(number[0]), float(number[1])
        if letter == "\\":
            letters += [[each, 1.0] for each in prompt[place + 1 : place + 2]]
            step = 2
        elif letter in opened:
            opened[letter].append(len(letters))
        elif close and opened[close]:
            for each in letters[opened[close].pop() :]:
                each[1] *= factor
        else:
            letters.append([letter, 1.0])
        place += step
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for start in opened[bracket]:
            for each in letters[start:]:
                each[1] *= factor
    return [(letter, round(weight, 9)) for letter, weight in letters]


def weights(prompt: str) -> list[tuple[str, float]]:
    fragments = [each for section in emphasis.parse(prompt).sections for each in section]
    return [(letter, round(each.weight, 9)) for each in fragments for letter in each.text]


@given(PROMPTS)
def test_numbers_beside_spaces_were_no_weights_before_1_6(prompt: str) -> None:
    try:
        expected = old_weights(prompt)
        kept = as_in_version(prompt, version("v1.5.1"), "original")
        assert weights(kept) == expected
    except (UsageError, ValueError):
        assume(False)  # a number such as 1.5.5 is an error in A1111, too
    assert as_in_version(prompt, version("v1.6.0"), "original") == prompt
    assert as_in_version(prompt, version(None), "comfyui") == prompt


@given(PROMPTS)
@example(":.5\n)")
def test_parts_of_several_lines_had_no_weight_before_1_5_1(prompt: str) -> None:
    kept = as_in_version(prompt, version("v1.5.0"), "original")
    found = []
    for text in re.split(r"\bAND\b", prompt):
        weight = re.fullmatch(r"([^\n]*?)\s*:\s*([-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+))\s*", text)
        found.append((weight[1], float(weight[2])) if weight else (text, 1.0))

    def words(parts: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
        return [(text.replace("\\", ""), weight) for text, weight in parts]  # every version removes the backslashes

    def parts(prompt: str) -> list[tuple[str, float]]:
        return words((each.text, each.weight) for each in editing.parts(prompt))

    assert parts(kept) == words(found)
    assert parts(as_in_version(prompt, version("v1.5.1"), "original")) == parts(prompt)


def test_such_numbers_stay_in_the_recipe_behind_a_backslash() -> None:
    found = read(prompt="a (b: 1.5), [c:d: 0.5 ]", negativePrompt="(e:1.3 )", Version="v1.5.1", VAE="x")
    assert (found["recipe"]["prompt"], found["recipe"]["negative_prompt"]) == (
        "a (b: 1.\\5), [c:d: 0.\\5 ]",
        "(e:1.\\3 )",
    )
    assert "a backslash before the number preserves this" in " ".join(found["reasons"])
    assert read(prompt="a (b: 1.5)")["recipe"]["prompt"] == "a (b: 1.5)"
    second = {"Hires upscale": "2", "Hires upscaler": "Latent", "Denoising strength": "0.5", "Hires prompt": "(x: 2)"}
    assert read(**second, Version="v1.5.1")["recipe"]["hires"]["prompt"] == "(x: \\2)"
    assert read(**second)["recipe"]["hires"]["prompt"] == "(x: 2)"


@pytest.mark.parametrize(
    ("stated", "is_unknown"),
    [(None, True), ("v1.2.1", True), ("v1.5.1", True), ("v1.6.0", False), ("v1.10.1", False), ("f2.0.1v1.10.1", False)],
)  # fmt: skip
def test_the_vae_is_stated_since_1_6(stated: str | None, is_unknown: bool) -> None:
    found = read(VAE=None, Version=stated)
    assert any("did not record the VAE" in words for words in found["reasons"]) == is_unknown
    assert read(VAE="x", Version=stated)["recipe"]["vae"] == {"name": "x", "hash": ""}


def test_forge_names_the_vae_as_a_module() -> None:
    forge = "f2.0.1v1.10.1-previous-659-gc055f2d4"
    found = read(**{"Module 1": "vae-ft-mse", "Version": forge, "VAE": None})
    assert found["recipe"]["vae"] == {"name": "vae-ft-mse", "hash": ""}
    assert not any("unknown to civman" in words for words in found["reasons"])
    several = read(**{"Module 1": "a", "Module 2": "b", "Version": forge, "VAE": None})
    assert (several["recipe"]["vae"], "Module 1" in " ".join(several["reasons"])) == (None, True)
    assert read(Version="neo")["recipe"]["odd_sizes"] == read(Version="classic")["recipe"]["odd_sizes"] == "forge"


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras New", "DPM++ 2M", "Karras"),
        ("DPM++ SDE Karras 2", "DPM++ SDE", "Karras"),
        ("DPM++ 2M Karras Sharp v2", "DPM++ 2M", "Karras"),
        ("DPM++ 2M alt Karras", "DPM++ 2M", "Karras"),
        ("DPM++ 2M Karras, Sharp", "DPM++ 2M", "Karras"),
        ("DPM++ 2M test", "DPM++ 2M", "Normal"),
        ("DPM++ 3M SDE Exponential Mine", "DPM++ 3M SDE", "Exponential"),
    ],
)
def test_samplers_of_ones_own_are_replaced_by_those_they_were_made_from(name: str, sampler: str, schedule: str) -> None:
    found = read(sampler=name, Version=None)
    assert (found["recipe"]["sampler"], found["recipe"]["schedule"]) == (sampler, schedule)
    assert "of a modified A1111" in " ".join(found["reasons"])


@pytest.mark.parametrize("name", ["DPM++ 2M Karras Dynamic", "KKW Karras", "Euler Max", "DPM++ 2M SDE EDM"])
def test_schedules_and_samplers_of_extensions_are_not_replaced(name: str) -> None:
    assert read(sampler=name)["drawable"] == "no"
    assert "of a modified A1111" not in " ".join(read(sampler="DPM++ 2M SDE Karras")["reasons"])


def test_eta_of_ddim_had_the_name_of_the_ancestral_one_until_2023() -> None:
    old, new = read(sampler="DDIM", Eta="0.5"), read(sampler="DDIM", **{"Eta DDIM": "0.5"})
    assert [(each["recipe"]["sampling"]["eta"], each["recipe"]["sampling"]["eta_ddim"]) for each in (old, new)] == [
        (1.0, 0.5), (1.0, 0.5),
    ]  # fmt: skip
    assert read(Eta="0.5")["recipe"]["sampling"]["eta"] == 0.5


def test_karras_had_other_levels_before_2023() -> None:
    old = {"First pass size": "0x0", "Denoising strength": "0.7", "Size": "512x768", "Version": None}
    assert "from 10 to 0.1" in " ".join(read(**old, sampler="DPM++ 2M Karras")["reasons"])
    assert "from 10 to 0.1" not in " ".join(read(**old)["reasons"])


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"prompt": "a AND b", "Version": None}, "differs", ""),
        ({"prompt": "[a:b:3] AND b", "Version": None}, "differs", "the prompt changes during the steps"),
        ({"Denoising strength": "0"}, "exact", ""),
        ({"Denoising strength": "0", "Init image hash": "x"}, "needs-input", "another image"),
        ({"Tiling": "True"}, "no", "seamless for tiling"),
        ({"Tiling": "False"}, "exact", ""),
        ({"Hypertile U-Net": "True", "Hypertile U-Net max depth": "3"}, "no", "changed the model"),
        ({"freeu_enabled": "True", "freeu_b1": "1.01"}, "no", "changed the model"),
        ({"freeu_enabled": "False", "freeu_b1": "1.01"}, "exact", ""),
        ({"VAE Decoder": "TAESD"}, "differs", "approximate VAE such as TAESD"),
        ({"VAE Decoder": "Full", "VAE Encoder": "Full"}, "exact", ""),
        ({"FP8 weight": "Enable for SDXL", "Cache FP16 weight for LoRA": "True"}, "differs", "8 bits"),
        ({"Diffusion in Low Bits": "Automatic (fp16 LoRA)"}, "exact", ""),
        ({"Diffusion in Low Bits": "bnb-nf4"}, "differs", "8 bits"),
        ({"Noise Schedule": "Zero Terminal SNR"}, "no", "rescaled the noise levels"),
        ({"Noise Schedule": "Default"}, "exact", ""),
        ({"Schedule max sigma": "0", "SGM noise multiplier": "False"}, "exact", ""),
        ({"Schedule max sigma": "10"}, "no", "does not support"),
        ({"Schedule type": "Beta", "Beta schedule alpha": "0.6", "Beta schedule beta": "0.6"}, "exact", ""),
        ({"Schedule type": "Beta", "Beta schedule alpha": "0.5"}, "no", "other parameters than civman's"),
        ({"sampler": "UniPC", "UniPC skip type": "time_quadratic"}, "no", "UniPC"),
        ({"sampler": "UniPC", "UniPC lower order final": "False"}, "no", "UniPC"),
        ({"sampler": "UniPC", "UniPC lower order final": "True", "UniPC order": "3"}, "exact", ""),
        ({"Version": "a1b2c3d", "VAE": "x", "VAE hash": "aabbccddee", "Parser": "Full parser"}, "differs", "SD.Next"),
        ({"Version": "a1b2c3d", "App": "SD.Next", "Operations": "txt2img"}, "differs", "SD.Next"),
        ({"Version": "a1b2c3d", "Backend": "Diffusers"}, "no", "diffusers"),
        ({"Version": "a1b2c3d", "App": "SD.Next", "Pipeline": "StableDiffusionPipeline"}, "no", "diffusers"),
        ({"Version": "easydiffusion"}, "differs", "a program that civman does not know"),
        ({"prompt": "a <LORA:x:1>"}, "exact", "is of a kind that neither"),
        ({"Size": "512 x 512"}, "exact", ""),
    ],
    ids=str,
)
def test_each_entry_has_its_verdict(changes: dict[str, Any], verdict: str, words: str) -> None:
    found = read(**changes)
    listed = " ".join(found["reasons"])
    assert (found["drawable"], bool(listed) or not words) == (verdict, True)
    assert words in listed
    assert "prompt changes" in words or "prompt changes" not in listed
    assert "unknown to civman" not in listed


def test_a_removed_tag_is_still_listed_by_civitai() -> None:
    listed = [
        {"type": "lora", "name": "ink", "weight": 0.8},
        {"type": "lora", "name": "sea", "weight": 0.3, "hash": "a" * 10},
    ]
    gone = read(resources=listed)
    assert [(each["name"], each["hash"], each["scale"]) for each in gone["recipe"]["loras"]] == [
        ("ink", "", 0.8), ("sea", "a" * 10, 0.3),
    ]  # fmt: skip
    assert sum("but CivitAI lists it" in words for words in gone["reasons"]) == 2
    kept = read(resources=listed, prompt="<lora:ink:0.8> <lora:the sea:0.3>")
    assert [(each["name"], each["hash"]) for each in kept["recipe"]["loras"]] == [("ink", ""), ("the sea", "a" * 10)]
    assert not any("but CivitAI lists it" in words or "does not use" in words for words in kept["reasons"])
    unwanted = read(resources=listed[:1], negativePrompt="<lora:ink:0.8>")
    assert unwanted["recipe"]["loras"] == []
    assert read(resources=listed, prompt=None)["reasons"] == ["the settings contain no prompt"]


def test_additional_networks_have_the_listed_hashes_in_their_order() -> None:
    meta: dict[str, Any] = {"AddNet Enabled": "True"}
    for place, weight in enumerate(("0.6", "0.6", "0.9"), 1):
        meta |= {f"AddNet Model {place}": f"file-{place}", f"AddNet Weight A {place}": weight}
    listed = [{"type": "lora", "name": name, "hash": name * 12, "weight": None} for name in "abc"]
    found = read(**meta, resources=[{"type": "model", "name": "m", "hash": "f" * 10}, *listed])
    assert [(each["name"], each["hash"], each["scale"]) for each in found["recipe"]["loras"]] == [
        ("a", "a" * 12, 0.6), ("b", "b" * 12, 0.6), ("c", "c" * 12, 0.9),
    ]  # fmt: skip
    fewer = read(**meta, resources=listed[:2])
    assert [each["name"] for each in fewer["recipe"]["loras"]] == ["file-1", "file-2", "file-3"]


def test_the_end_of_a_torn_prompt_of_adetailer_is_recognised() -> None:
    torn = {"ADetailer model": "face_yolov8n.pt", "super face": '0.8>"'}
    assert not read(**torn)["recipe"]["details"]
    assert "only the end of an ADetailer prompt" in " ".join(read(**torn)["reasons"])
    assert len(read(**torn | {"super face": "0.8"})["recipe"]["details"]) == 1
    assert len(read(**torn | {"ADetailer prompt": "a face"})["recipe"]["details"]) == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"hashes": {"hypernet:h": "aabbccddee"}},
        {"resources": [{"type": "hypernet", "name": "h", "hash": "AABBCCDDEE", "weight": 0.5}]},
    ],
    ids=str,
)
def test_hashes_of_hypernetworks_are_listed_too(entry: dict[str, Any]) -> None:
    found = read(prompt="a <hypernet:h:0.5>", **entry)
    assert found["recipe"]["hypernetworks"] == [{"name": "h", "hash": "aabbccddee", "strength": 0.5}]
    assert found["drawable"] == "exact"


@pytest.mark.parametrize(
    ("added", "verdict", "words"),
    [
        (
            "",
            "differs",
            "can be rendered again, with differences:\n  the settings name the checkpoint `m` without a hash",
        ),
        (
            ", Denoising strength: 0.5",
            "needs-input",
            "can only be rendered again from an input image, which its settings do not contain:\n  the image was",
        ),
        (", Tiling: True", "no", "cannot be rendered again:\n  the image was made seamless"),
    ],
)
def test_show_says_whether_an_image_of_another_program_can_be_drawn_again(
    civman: Civman, tmp_path: Path, added: str, verdict: str, words: str
) -> None:
    text = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64, Model: m, VAE: None, Version: v1.10.1"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text + added)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)

    shown, value = civman("show", tmp_path / "a.png"), civman("show", tmp_path / "a.png", "--json").json["picture"]

    assert words in shown.out
    assert (value["drawable"], f"  {value['reasons'][0]}\n" in shown.out) == (verdict, True)
