"""Second passes with values of their own and refiners in the settings of A1111 and Forge."""

from typing import Any

import pytest

from civman.planning.redraw import redraw

PLAIN: dict[str, Any] = {
    "prompt": "a cat <lora:one:0.8>", "negativePrompt": "bad", "steps": 20, "sampler": "Euler a", "cfgScale": 7,
    "seed": 5, "Size": "512x512", "Model": "some-model", "Model hash": "bb4f4d123e", "Version": "v1.10.1", "RNG": "CPU",
    "hashes": {"lora:one": "123456789abc", "lora:two": "cba987654321"},
}  # fmt: skip
HIRES = {"Hires upscale": "2", "Hires upscaler": "Latent", "Denoising strength": "0.5"}
OTHER = "fine [0123456789]"


def read(**changes: Any) -> dict[str, Any]:
    return redraw({"id": 1, "baseModel": "SD 1.5", "meta": PLAIN | changes}).value()


def test_the_second_prompt_names_the_adapters_of_the_second_pass() -> None:
    found = read(**HIRES, **{"Hires prompt": "a dog <lora:two:0.5:0.6>", "Hires negative prompt": "ugly"})

    assert (found["drawable"], found["reasons"]) == ("exact", [])
    hires = found["recipe"]["hires"]
    assert (hires["prompt"], hires["negative_prompt"], [*hires["hypernetworks"]]) == ("a dog ", "ugly", [])
    [lora] = hires["loras"]
    assert (lora["name"], lora["hash"], lora["text_scale"], lora["scale"]) == ("two", "cba987654321", 0.5, 0.6)
    assert {each["name"] for each in found["resources"]} == {"some-model", "one", "two"}
    assert [each["name"] for each in found["recipe"]["loras"]] == ["one"]


def test_before_1_5_the_second_pass_kept_the_adapters_of_the_first() -> None:
    found = read(**HIRES, **{"Hires prompt": "a dog <lora:two:0.5>", "Version": "v1.4.1"})

    hires = found["recipe"]["hires"]
    assert (hires["prompt"], hires["loras"], hires["hypernetworks"]) == ("a dog ", None, None)


def test_additional_networks_stay_active_in_the_second_pass() -> None:
    added = {
        "AddNet Enabled": "True", "AddNet Module 1": "LoRA", "AddNet Model 1": "more(aabbccddeeff)",
        "AddNet Weight A 1": "0.4", "AddNet Weight B 1": "0.4",
    }  # fmt: skip
    found = read(**HIRES, **added, **{"Hires prompt": "a dog"})

    assert [each["name"] for each in found["recipe"]["hires"]["loras"]] == ["more"]


@pytest.mark.parametrize("absent", ["Use same checkpoint", "None", ""])
def test_the_second_checkpoint_is_named_with_its_hash(absent: str) -> None:
    found = read(**HIRES, **{"Hires checkpoint": OTHER})

    assert found["drawable"] == "exact"
    assert found["recipe"]["hires"]["checkpoint"] == {"name": "fine", "hash": "0123456789"}
    assert ("hires-checkpoint", "fine") in {(each["role"], each["name"]) for each in found["resources"]}
    assert read(**HIRES, **{"Hires checkpoint": absent})["recipe"]["hires"]["checkpoint"] is None
    by_name = read(**HIRES, **{"Hires checkpoint": "fine"})
    assert by_name["drawable"] == "differs"
    assert by_name["reasons"][0] == "the settings name the checkpoint of the second pass `fine` without a hash"


@pytest.mark.parametrize(
    ("changes", "at", "by_steps", "passes"),
    [
        ({}, 0.8, False, "second"),
        ({"Refiner switch at": "0.65"}, 0.65, False, "second"),
        ({"Refiner switch by sampling steps": "True"}, 0.8, True, "second"),
        ({"Version": "v1.7.0"}, 0.8, True, "second"),
        ({"Version": "f2.0.1v1.10.1-previous-659"}, 0.8, True, "second"),
        (HIRES, 0.8, False, "second"),
        (HIRES | {"Hires refiner": "first pass"}, 0.8, False, "first"),
        (HIRES | {"Hires refiner": "both passes"}, 0.8, False, "both"),
        ({"Hires refiner": "both passes"}, 0.8, False, "second"),
    ],
    ids=str,
)
def test_a_refiner_takes_over_by_the_rules_of_the_version(
    changes: dict[str, Any], at: float, by_steps: bool, passes: str
) -> None:
    found = read(Refiner=OTHER, **changes)

    assert found["drawable"] == "exact" or "half precision" not in found["reasons"]
    assert found["recipe"]["refiner"] == {
        "checkpoint": {"name": "fine", "hash": "0123456789"}, "switch_at": at, "by_steps": by_steps, "passes": passes,
    }  # fmt: skip


def test_a_prompt_that_the_site_cut_off_is_not_guessed() -> None:
    found = read(**HIRES, **{"Hires prompt": '"a dog'})

    assert found["drawable"] == "no"
    assert "cut off the second pass's prompt" in found["reasons"][0]


@pytest.mark.parametrize("second_pass", [HIRES, HIRES | {"Hires upscaler": "Lanczos"}], ids=["latent", "pixels"])
@pytest.mark.parametrize("sampler", ["PLMS", "UniPC", "DDIM", "Euler a"])
@pytest.mark.parametrize(
    ("version", "is_old"),
    [("", True), ("24d8570", True), ("v1.3.2-RC-1-gbaf6946e", True), ("v1.5.2", True), ("v1.5.2-312-gabcdef12", True),
     ("v1.6.0", False), ("v1.6.0-2-g4afaaf8a", False), ("v1.6.1", False), ("v1.10.1", False),
     ("f2.0.1v1.10.1-previous-659", False), ("civman 0.1.0", False)],
)  # fmt: skip
def test_ddim_replaced_samplers_in_the_second_pass_before_1_6(
    version: str, is_old: bool, sampler: str, second_pass: dict[str, str]
) -> None:
    found = read(**second_pass, sampler=sampler, Version=version)

    own = found["recipe"]["hires"]
    replaced = is_old and sampler in ("PLMS", "UniPC")
    assert (own["sampler"], own["schedule"]) == (("DDIM", "Automatic") if replaced else ("", ""))
    assert found["recipe"]["sampler"] == sampler
    assert read(sampler=sampler, Version=version)["recipe"]["hires"] is None
    stated = read(**second_pass, sampler=sampler, Version=version, **{"Hires sampler": "Euler"})
    assert stated["recipe"]["hires"]["sampler"] == "Euler"
    same = read(**second_pass, sampler=sampler, Version=version, **{"Hires sampler": "Use same sampler"})
    assert same["recipe"]["hires"]["sampler"] == own["sampler"]
