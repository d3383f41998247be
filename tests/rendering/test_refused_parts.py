# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Every transformer family: a missing part, a wrong part or another family's adapter is refused before loading.

Each refusal names the part, the option that passes it and, if a published file is known, that file.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from published_sizes import class_shapes
from running import Civman, Run
from safetensors.torch import save_file

from civman.diffusion.families.flow_family import FlowFamily, Need
from civman.diffusion.families.registry import FLOW_FAMILIES
from civman.diffusion.flow_parts import option_of
from civman.domain.known_parts import parts_for

QUICK = ("--size", "64x64", "--steps", "2", "--device", "cpu", "--precision", "float32", "--dry-run", "--json")


def family_of(name: str) -> FlowFamily:
    return next(each for each in FLOW_FAMILIES if name.startswith(each.name))


def needed() -> list[Any]:
    """Every part that a tiny model needs; all but those of Flux.1 are for the long tests."""
    return [
        pytest.param(name, need, id=f"{name}-{need.kind.role}", marks=() if name == "flux1" else (pytest.mark.long,))
        for name in tiny_flows.TINY
        for need in family_of(name).needs
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """A tiny model taken apart: role → file."""

    @cache
    def made(name: str) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp(name)
        family = family_of(name)
        tensors = tiny_flows.original_tensors(name, family, tiny_flows.modules(name))
        transformer, parts = tiny_flows.apart(family, tensors, folder)
        save_file(transformer, folder / "transformer.safetensors")
        return parts | {"transformer": folder / "transformer.safetensors"}

    return made


def asked(civman: Civman, files: dict[str, Path], *more: object) -> Run:
    given = [
        word
        for role, path in files.items()
        if role != "transformer"
        for word in (("--vae", path) if role == "vae" else ("--part", f"{role}={path}"))
    ]
    return civman("render", files["transformer"], "a cat", *QUICK, *given, *more)


def require_refusal(done: Run, code: str, family: FlowFamily, need: Need) -> str:
    """Require one refusal that says what to pass and what to fetch; returns its message."""
    error = done.json["error"]
    assert (done.code, error["code"]) == (8, code), error
    assert error["facts"]["part"] == need.kind.role
    assert need.kind.title in error["message"]
    assert option_of(need) in error["hint"]
    published = parts_for(str(family.architecture), need.kind.role)
    fetched = [part for part in published if f"`civman download {part.sha256}` fetches {part.title}" in error["hint"]]
    assert len(fetched) == 1 or (
        "CivitAI offers text encoders and VAEs" in error["hint"] and _may_be_unknown(published)
    )
    return str(error["message"])


def _may_be_unknown(published: Any) -> bool:
    """Whether no published file is known, or none of the tiny model's width."""
    return all(part.width is not None for part in published)


@pytest.mark.parametrize(("name", "need"), needed())
def test_a_missing_part_is_named_with_what_to_fetch(
    civman: Civman, files: Callable[[str], dict[str, Path]], name: str, need: Need
) -> None:
    given = {role: path for role, path in files(name).items() if role != need.kind.role}

    done = asked(civman, given)

    if need.is_optional:
        assert done.code == 0, done.err
        return
    assert "contains no" in require_refusal(done, "missing-part", family_of(name), need)


@pytest.mark.parametrize(("name", "need"), needed())
def test_a_part_of_another_width_is_refused_with_both_widths(
    civman: Civman, files: Callable[[str], dict[str, Path]], tmp_path: Path, name: str, need: Need
) -> None:
    family = family_of(name)
    kind, config = tiny_flows.TINY[name][need.component]
    option = next(option for component, (option, _) in family.widths(_transformer(name)).items()
                  if component == need.component)  # fmt: skip
    width = int(config[option])
    wide = {key: torch.zeros(shape) for key, shape in class_shapes(kind, {**config, option: 2 * width}).items()}
    shapes = {key: tuple(value.shape) for key, value in wide.items()}
    tensors = tiny_flows.backwards(wide, need.kind.sources(shapes, {**config, option: 2 * width}))
    for key in need.kind.tokenizers[:1]:
        tensors[key] = tiny_flows.byte_tensor(tiny_flows.tokenizer_of(need.kind.role))
    other = tiny_flows.write_part(tmp_path / "other.safetensors", need.kind, tensors)

    done = asked(civman, files(name) | {need.kind.role: other})

    said = require_refusal(done, "mismatched-parts", family, need)
    assert f"has a width of {2 * width}, but `transformer.safetensors` needs a width of {width}" in said


@pytest.mark.parametrize(("name", "need"), needed())
def test_a_file_of_another_kind_is_refused_by_name(
    civman: Civman, files: Callable[[str], dict[str, Path]], name: str, need: Need
) -> None:
    role = need.kind.role
    kl, wan, t5 = files("flux1")["vae"], files("qwen-image")["vae"], files("flux1")["t5"]
    clip = files("flux1")["clip-l"]
    other = clip if role == "t5" else t5 if role != "vae" else wan if need.kind.model == "AutoencoderKL" else kl

    done = asked(civman, files(name) | {role: other})

    said = require_refusal(done, "mismatched-parts", family_of(name), need)
    assert f"`{other.name}` is not the required part" in said


@pytest.mark.parametrize(("name", "_"), tiny_flows.cases([""]))
def test_an_adapter_of_another_family_is_refused(
    civman: Civman, files: Callable[[str], dict[str, Path]], tmp_path: Path, name: str, _: str
) -> None:
    lora = tmp_path / "other.safetensors"
    module = "lora_unet_down_blocks_{}_attentions_0_proj_in"
    save_file(
        {
            f"{module.format(number)}.lora_{side}.weight": torch.ones(shape)
            for number in range(3)
            for side, shape in (("down", (2, 8)), ("up", (8, 2)))
        },
        lora,
    )

    done = asked(civman, files(name), "--lora", lora)

    error = done.json["error"]
    assert (done.code, error["code"]) == (7, "cannot-work"), error
    assert "`other.safetensors`" in error["message"]
    assert "0 of 3 modules fit" in error["message"]
    assert "`civman list --fits CHECKPOINT` lists the files that fit" in error["hint"]


def _transformer(name: str) -> Any:
    """The dimensions of a tiny model's transformer."""
    family = family_of(name)
    wanted = class_shapes(*tiny_flows.TINY[name]["transformer"])
    found: dict[str, tuple[int, ...]] = {}
    for component, (kind, config) in tiny_flows.TINY[name].items():
        if component not in {need.component for need in family.needs}:
            wanted = class_shapes(kind, config)
            sources = family.sources(component, wanted, "")
            zeros = {key: torch.zeros(shape) for key, shape in wanted.items()}
            found |= {key: tuple(value.shape) for key, value in tiny_flows.backwards(zeros, sources).items()}
    return family.config(found)
