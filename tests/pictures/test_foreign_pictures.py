"""Other tools' pictures: the real ones as expected.json says, the others from the forms their makers document."""

import hashlib
import io
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from running import SHARED

from civman.pictures import image_text, other_programs
from civman.pictures.other_programs import Generator, PictureMetadata, Resource

FOLDER = SHARED / "fixtures" / "images"
EXPECTED: dict[str, Any] = (
    json.loads((FOLDER / "expected.json").read_text("utf-8")) if (FOLDER / "expected.json").is_file() else {}
)
SETTINGS = {name: name for name in ("steps", "sampler", "cfg", "seed", "width", "height", "clip_skip")} | {
    "scheduler": "schedule"
}


def png(**texts: str) -> image_text.Carried:
    notes, data = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        notes.add_itxt(name.replace("_", "-") if name == "sd_metadata" else name, text)
    Image.new("RGB", (8, 8)).save(data, "PNG", pnginfo=notes)
    return image_text.read(data.getvalue())


def told(**texts: str) -> PictureMetadata:
    found = other_programs.read(png(**texts))
    assert found is not None
    return found


def numbers(found: PictureMetadata) -> tuple[Any, ...]:
    kept = found.settings
    return (kept.steps, kept.sampler, kept.schedule, kept.cfg, kept.seed, kept.width, kept.height, kept.clip_skip)


def names(found: PictureMetadata, kind: str) -> list[str]:
    return [part.name for part in found.resources if part.kind == kind]


@pytest.mark.skipif(not EXPECTED, reason="the real pictures are not here")
def test_there_is_a_real_picture_for_each_expectation():
    assert {path.name for path in FOLDER.glob("*.*g")} == set(EXPECTED)


@pytest.mark.parametrize("file", EXPECTED)
def test_real_pictures_read_as_expected(file: str):
    entry = EXPECTED[file]
    expected: Mapping[str, Any] = entry["expected"]

    found = other_programs.read(image_text.read(FOLDER / file))

    assert found is not None
    assert entry["generator"].startswith(found.generator.value)
    seen: dict[str, Any] = {name: getattr(found.settings, ours) for name, ours in SETTINGS.items() if name in expected}
    for name, text in (("prompt", found.prompt), ("negative", found.negative)):
        if f"{name}_start" in expected:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            seen |= {f"{name}_start": text[:60], f"{name}_len": len(text), f"{name}_sha256": digest}
    checkpoint = next((part for part in found.resources if part.kind == "checkpoint"), Resource("checkpoint"))
    seen |= {
        "model": checkpoint.name, "model_hash": checkpoint.hash, "models": names(found, "checkpoint"),
        "loras": [{"name": part.name, "weight": part.weight} for part in found.resources if part.kind == "lora"],
        "civitai_versions": [part.version_id for part in found.resources if part.version_id],
    }  # fmt: skip
    assert {name: seen.get(name) for name in expected} == dict(expected)


FORGE = (
    "portrait <lora:detail.v2:0.6>\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, Schedule type: Simple,"
    " CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 3045329758, Size: 832x1216, Model hash: 06f96f89f6,"
    ' Model: flux_dev, Lora hashes: "detail.v2: de92428f6411, other: c4f0b45e6a60",'
    " Version: f2.0.1v1.10.1-previous-561-g82eb7566, Module 1: ae, Module 2: clip_l"
)


def test_forge():
    found = told(parameters=FORGE)

    assert (found.generator, found.negative) == (Generator.FORGE, "blurry")
    assert numbers(found) == (20, "Euler", "Simple", 1.0, 3045329758, 832, 1216, None)
    assert Resource("checkpoint", "flux_dev", "06f96f89f6") in found.resources
    assert Resource("lora", "detail.v2", "de92428f6411", weight=0.6) in found.resources
    assert names(found, "module") == ["ae", "clip_l"]
    assert found.notes == ("distilled guidance 3.5",)


def test_sd_next():
    found = told(parameters=(
        "prompt words\nNegative prompt: not this\nSteps: 20, Size: 1312x1408, Sampler: DPM++ SDE, Scheduler: Foo,"
        " Seed: 1561296656, CFG scale: 6.5, CFG rescale: 0.7, Clip skip: 2, App: SD.Next, Version: 8b73cb6,"
        " Pipeline: StableDiffusionXLPipeline, Operations: txt2img, Model: hassaku_v21, Model hash: 847403d47a,"
        " VAE: fixed"
    ))  # fmt: skip

    assert found.generator is Generator.SDNEXT
    assert numbers(found) == (20, "DPM++ SDE", "Foo", 6.5, 1561296656, 1312, 1408, 2)
    assert found.resources == (Resource("checkpoint", "hassaku_v21", "847403d47a"), Resource("vae", "fixed"))


FOOOCUS = {
    "base_model": "juggernautXL_v8", "base_model_hash": "aeb7e9e689", "guidance_scale": 4, "negative_prompt": "",
    "loras": [["offset_1.0", 0.1, "4852686128"]], "metadata_scheme": "fooocus", "performance": "Speed",
    "prompt": "A field", "version": "Fooocus v2.5.5", "refiner_model": "None", "resolution": "(512, 768)",
    "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "127589946317439009", "steps": 30,
    "styles": "['Fooocus V2']", "vae": "Default (model)",
}  # fmt: skip


def test_fooocus():
    found = told(parameters=json.dumps(FOOOCUS), fooocus_scheme="fooocus")

    assert (found.generator, found.prompt) == (Generator.FOOOCUS, "A field")
    assert numbers(found) == (30, "dpmpp_2m_sde_gpu", "karras", 4.0, 127589946317439009, 512, 768, None)
    assert found.resources == (
        Resource("checkpoint", "juggernautXL_v8", "aeb7e9e689"),
        Resource("lora", "offset_1.0", "4852686128", weight=0.1),
    )


def test_fooocus_in_a1111s_form():
    found = told(parameters=(
        "A field\nNegative prompt: x\nSteps: 30, Sampler: DPM++ 2M SDE Karras, CFG scale: 4, Seed: 12, Size: 512x768,"
        ' Model: jugger, Model hash: aeb7e9e689, Lora hashes: "offset: 4852686128", Lora weights: "offset: 0.1",'
        " Version: Fooocus v2.5.5"
    ))  # fmt: skip

    assert found.generator is Generator.FOOOCUS
    assert Resource("lora", "offset", "4852686128", weight=0.1) in found.resources


def test_ruined_fooocus():
    found = told(parameters=json.dumps({
        "Prompt": "film still", "Negative": "anime", "steps": 30, "cfg": 8.5, "width": 1152, "height": 896,
        "seed": 3864674281, "sampler_name": "dpmpp_2m_sde_gpu", "scheduler": "karras", "clip_skip": 1, "denoise": None,
        "base_model_name": "sd_xl.safetensors", "base_model_hash": "be9edd61", "software": "RuinedFooocus",
        "loras": [["4852686128", "0.1 - sets\\offset - 1.0.safetensors"]],
    }))  # fmt: skip

    assert (found.generator, found.prompt, found.negative) == (Generator.RUINED_FOOOCUS, "film still", "anime")
    assert numbers(found) == (30, "dpmpp_2m_sde_gpu", "karras", 8.5, 3864674281, 1152, 896, 1)
    assert found.resources == (
        Resource("checkpoint", "sd_xl.safetensors", "be9edd61"),
        Resource("lora", "sets\\offset - 1.0.safetensors", "4852686128", weight=0.1),
    )


def test_swarm_with_loras_and_hashes_of_the_tensors():
    found = told(parameters=json.dumps({
        "sui_image_params": {"prompt": "1girl", "negativeprompt": "pov", "model": "sets/dream", "seed": 7, "steps": 16,
                             "cfgscale": 2.0, "width": 1248, "height": 1824, "sampler": "er_sde", "scheduler": "beta",
                             "loras": ["styleA", "turbo-v0.2"], "loraweights": ["0.4", "-0.7"]},
        "sui_models": [{"name": "sets/dream.safetensors", "param": "model", "hash": "0x84FC41EA0821FA0A"},
                       {"name": "styleA.safetensors", "param": "loras", "hash": "0xe8055d97ec312203"}],
    }))  # fmt: skip

    assert numbers(found) == (16, "er_sde", "beta", 2.0, 7, 1248, 1824, None)
    assert found.resources == (
        Resource("checkpoint", "sets/dream", "84fc41ea0821"), Resource("lora", "styleA", "e8055d97ec31", weight=0.4),
        Resource("lora", "turbo-v0.2", weight=-0.7),
    )  # fmt: skip


def test_invokeai_since_version_4():
    found = told(invokeai_metadata=json.dumps({
        "generation_mode": "txt2img", "positive_prompt": "a hut", "negative_prompt": "rain", "width": 512,
        "height": 640, "seed": 42, "cfg_scale": 7.5, "steps": 30, "scheduler": "euler_a", "clip_skip": 0,
        "model": {"key": "k", "hash": "blake3:0123456789abcdef", "name": "dream", "base": "sd-1", "type": "main"},
        "loras": [{"model": {"name": "detail", "hash": "blake3:fedcba9876543210"}, "weight": 0.75}],
    }))  # fmt: skip

    assert (found.generator, found.prompt, found.negative) == (Generator.INVOKEAI, "a hut", "rain")
    assert numbers(found) == (30, "euler_a", None, 7.5, 42, 512, 640, 1)
    assert (names(found, "checkpoint"), names(found, "lora")) == (["dream"], ["detail"])


def test_invokeai_version_2():
    found = told(sd_metadata=json.dumps({
        "model_weights": "stable-diffusion-1.5", "model_hash": "cc6cb27103417325ff94f52b7a5d2dde", "app_version": "2.3",
        "image": {"prompt": [{"prompt": "a hut [rain]", "weight": 1}], "steps": 50, "cfg_scale": 7.5, "seed": 3,
                  "width": 512, "height": 448, "sampler": "k_lms"},
    }))  # fmt: skip

    assert (found.prompt, found.negative) == ("a hut", "rain")
    assert numbers(found) == (50, "k_lms", None, 7.5, 3, 512, 448, None)
    assert names(found, "checkpoint") == ["stable-diffusion-1.5"]


def test_invokeai_data_of_the_wrong_types_tells_what_is_left():
    image = {"prompt": [{"prompt": "a hut"}], "steps": "many", "sampler": ["k_lms"], "full_prompt": 5}

    found = told(sd_metadata=json.dumps({"model_weights": ["x"], "image": image, "full_prompt": 7}))

    assert (found.generator, found.settings.steps) == (Generator.INVOKEAI, None)


def test_novelai_version_4_with_characters():
    found = told(Software="NovelAI", Source="NovelAI Diffusion V4 37442FCA", Comment=json.dumps({
        "prompt": "two girls", "uc": "lowres", "steps": 28, "sampler": "k_euler_ancestral", "noise_schedule": "karras",
        "scale": 5.0, "seed": 12345, "width": 832, "height": 1216,
        "v4_prompt": {"caption": {"base_caption": "two girls", "char_captions": [{"char_caption": "zhu yuan"}]}},
    }))  # fmt: skip

    assert numbers(found) == (28, "k_euler_ancestral", "karras", 5.0, 12345, 832, 1216, None)
    assert (names(found, "checkpoint"), found.notes) == (
        ["NovelAI Diffusion V4"], ("prompts for 1 characters: zhu yuan",),
    )  # fmt: skip


def test_civitais_generator_with_settings_that_mean_nothing():
    found = told(parameters=(
        "a cat\nSteps: 25, Sampler: Undefined, CFG scale: 3.5, Seed: 5, Size: 832x1216, Clip skip: 2, Model: FLUX.1,"
        ' Civitai resources: [{"type":"checkpoint","modelVersionId":691639,"modelName":"FLUX"},'
        '{"type":"lora","weight":0.8,"modelVersionId":2,"modelName":"Ink, fine: v1","modelVersionName":"1"}],'
        ' Civitai metadata: {"remixOfId":7}'
    ))  # fmt: skip

    assert (found.generator, found.settings.sampler, found.settings.clip_skip) == (Generator.CIVITAI, None, None)
    assert len(found.notes) == 2
    assert [(part.kind, part.version_id, part.weight) for part in found.resources] == [
        ("checkpoint", 691639, None), ("lora", 2, 0.8),
    ]  # fmt: skip


def node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs}


CUSTOM = {
    "1": node("CheckpointLoaderSimple", ckpt_name="dream.safetensors"),
    "2": node("Power Lora Loader (rgthree)", model=["1", 0],
              lora_1={"on": True, "lora": "ink.safetensors", "strength": 0.5},
              lora_2={"on": False, "lora": "off.safetensors", "strength": 1.0}),
    "3": node("CLIPSetLastLayer", clip=["2", 1], stop_at_clip_layer=-2),
    "4": node("PrimitiveString", value="a hut"),
    "5": node("CLIPTextEncode", clip=["3", 0], text=["4", 0]),
    "6": node("CLIPTextEncode", clip=["3", 0], text="rain embedding:bad_hands"),
    "7": node("EmptyLatentImage", width=640, height=["8", 0]),
    "8": node("PrimitiveInt", value=832),
    "9": node("ControlNetApplyAdvanced", positive=["5", 0], negative=["6", 0], control_net=["10", 0], strength=1.0),
    "10": node("ControlNetLoader", control_net_name="canny.safetensors"),
    "11": node("RandomNoise", noise_seed=77),
    "12": node("CFGGuider", model=["2", 0], positive=["9", 0], negative=["9", 1], cfg=4.5),
    "13": node("BasicScheduler", model=["2", 0], scheduler="karras", steps=24, denoise=1.0),
    "14": node("KSamplerSelect", sampler_name="dpmpp_2m"),
    "15": node("SamplerCustomAdvanced", noise=["11", 0], guider=["12", 0], sampler=["14", 0], sigmas=["13", 0],
               latent_image=["7", 0]),
    "16": node("LatentUpscale", samples=["15", 0], width=1280, height=1664),
    "17": node("KSampler", model=["2", 0], seed=5, steps=8, cfg=2.0, sampler_name="euler", scheduler="simple",
               denoise=0.4, positive=["9", 0], negative=["9", 1], latent_image=["16", 0]),
    "18": node("VAEDecode", samples=["17", 0], vae=["1", 2]),
    "19": node("SaveImage", images=["18", 0]),
    "20": node("CheckpointLoaderSimple", ckpt_name="not connected.safetensors"),
}  # fmt: skip


def test_a_comfyui_graph_of_many_parts_is_followed_to_its_first_pass():
    found = told(prompt=json.dumps(CUSTOM), workflow="{}")

    assert (found.generator, found.prompt, found.negative) == (Generator.COMFYUI, "a hut", "rain embedding:bad_hands")
    assert numbers(found) == (24, "dpmpp_2m", "karras", 4.5, 77, 640, 832, 2)
    assert [(part.kind, part.name, part.weight) for part in found.resources] == [
        ("checkpoint", "dream.safetensors", None), ("lora", "ink.safetensors", 0.5),
        ("controlnet", "canny.safetensors", None), ("embedding", "bad_hands", None),
    ]  # fmt: skip
    assert found.notes == ("the graph has 2 sampling passes; only the settings of the first one are listed",)


def test_civitais_comfyui_pictures_name_models_by_air():
    graph = dict(CUSTOM) | {
        "1": node("CheckpointLoaderSimple", ckpt_name="urn:air:sdxl:checkpoint:civitai:101055@128078")
    }

    found = told(prompt=json.dumps({**graph, "extraMetadata": json.dumps({"prompt": "as typed", "steps": 30})}))

    assert (found.generator, found.prompt, found.settings.steps) == (Generator.CIVITAI, "as typed", 30)
    assert found.resources[0].version_id == 128078


def test_comfyuis_webp_has_the_graph_in_exif():
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0110] = "prompt:" + json.dumps(CUSTOM)
    exif[0x010F] = "workflow:{}"
    Image.new("RGB", (8, 8)).save(data, "WEBP", exif=exif)

    found = other_programs.read(image_text.read(data.getvalue()))

    assert found is not None
    assert found.settings.seed == 77


def test_a_workflow_alone_is_said_to_be_that():
    assert told(workflow='{"nodes": []}').notes == (
        "the image contains only ComfyUI's editor workflow, or a graph that cannot be read",
    )


def test_a_picture_without_data_tells_nothing():
    assert other_programs.read(png()) is None
    assert other_programs.read(png(Comment="made with love", Software="GIMP")) is None


def test_graphs_that_go_in_circles_come_to_an_end():
    links = [[str(key + 1), 0] for key in range(300)]
    circle: dict[str, Any] = {
        str(key): node("KSampler", seed=link, steps=1, positive=link, latent_image=link, ckpt_name=link)
        for key, link in enumerate(links)
    }
    circle["300"] = node("SaveImage", images=["0", 0], text=["300", 0])
    circle["299"]["inputs"] = {"latent_image": ["0", 0], "text": ["0", 0], "steps": 1, "positive": ["0", 0]}

    assert told(prompt=json.dumps(circle)).generator is Generator.COMFYUI


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(("1", "KSampler")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from((
            "1", "inputs", "class_type", "model", "loras", "sui_image_params", "sui_models", "base_model", "text",
            "image", "guidance_scale", "prompt", "extraMetadata", "latent_image", "steps", "positive", "software",
        )),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(("parameters", "prompt", "invokeai_metadata", "sd-metadata", "Dream", "Comment", "Model")), JSON)
def test_no_json_makes_a_reader_fail(name: str, value: object):
    text = json.dumps(value)
    carried = image_text.Carried("png", (8, 8), None, text if name == "parameters" else None, {name: text})

    found = other_programs.read(carried)

    assert found is None or isinstance(found, PictureMetadata)


@pytest.mark.parametrize("name", ["parameters", "prompt", "invokeai_metadata", "sd-metadata", "Comment"])
def test_json_nested_without_end_is_nothing_and_no_crash(name: str):
    text = '{"a":' + "[" * 100_000
    carried = image_text.Carried("png", (8, 8), None, text if name == "parameters" else None, {name: text})

    found = other_programs.read(carried)

    assert found is None or not found.prompt


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 300_000, "a" + " " * 300_000 + "b", "," * 300_000, ", " * 150_000 + "x", "a:" * 150_000, 'a:"' * 100_000,
        "<lora:" * 50_000, "<lora:" + "a" * 300_000, "a:[" * 100_000, "Negative prompt" * 20_000, "a:[1," * 60_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["parameters", "Dream", "Comment"])
def test_texts_made_to_take_long_do_not(name: str, text: str):
    """Each takes milliseconds; a search that goes quadratic takes minutes."""
    text = f"{text}\nSteps: 1, Sampler: x, Seed: 2, {text}" if name == "parameters" else text
    carried = image_text.Carried("png", (8, 8), None, text if name == "parameters" else None, {name: text})
    before = time.process_time()

    found = other_programs.read(carried)
    _ = found and found.resources

    assert time.process_time() - before < 3
