"""ComfyUI's graphs and other programs' settings: the recipe that they ask for, or the exact reason for none."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from civman.planning.redraw import redraw
from civman.planning.redraw_result import Redraw

SHARED = Path(__file__).parents[2].parent / "shared" / "fixtures" / "images"
LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "SD1.5/dream.safetensors"}}


def text(words: str, clip: Any = ("4", 1)) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": words, "clip": list(clip)}}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": {name: list(item) if isinstance(item, tuple) else item
                                           for name, item in inputs.items()}}  # fmt: skip


def sampler(**changes: Any) -> dict[str, Any]:
    usual = {"seed": 7, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
             "model": ("4", 0), "positive": ("6", 0), "negative": ("7", 0), "latent_image": ("5", 0)}  # fmt: skip
    return node("KSampler", **usual | changes)


BASE: dict[str, Any] = {
    "3": sampler(), "4": LOADER, "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
    "6": text("a castle"), "7": text("bad"), "8": node("VAEDecode", samples=("3", 0), vae=("4", 2)),
    "9": node("SaveImage", images=("8", 0), filename_prefix="ComfyUI"),
}  # fmt: skip


def graph(**changes: Any) -> dict[str, Any]:
    """The default graph with nodes replaced or added; `n12` is node 12."""
    return BASE | {key.removeprefix("n"): value for key, value in changes.items()}


def planned(value: dict[str, Any]) -> Redraw:
    return redraw({"foreign": json.dumps(value)})


ADVANCED = {"model": ("4", 0), "positive": ("6", 0), "negative": ("7", 0), "steps": 20, "cfg": 8.0, "noise_seed": 7,
            "sampler_name": "euler", "scheduler": "normal"}  # fmt: skip
SECOND = sampler(seed=8, steps=10, sampler_name="dpmpp_2m", scheduler="karras", denoise=0.5, latent_image=("10", 0))
DECODE_SECOND = node("VAEDecode", samples=("11", 0), vae=("4", 2))
DRAWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("the default graph", graph(), {"prompt": "a castle", "negative_prompt": "bad", "seed": 7, "width": 512,
     "height": 768, "sampler": "Euler", "schedule": "Normal", "emphasis": "comfyui", "rng": "cpu", "step_rng": "",
     "rounding": "down"}),
    ("clip skip", graph(n10=node("CLIPSetLastLayer", clip=("4", 1), stop_at_clip_layer=-2), n6=text("a", ("10", 0)),
     n7=text("b", ("10", 0))), {"clip_skip": 2}),
    ("a LoRA for both", graph(n10=node("LoraLoader", model=("4", 0), clip=("4", 1), lora_name="x\\ink.safetensors",
     strength_model=0.8, strength_clip=0.5), n3=sampler(model=("10", 0)), n6=text("a", ("10", 1)),
     n7=text("b", ("10", 1))),
     {"loras": [{"name": "ink", "hash": "", "scale": 0.8, "text_scale": 0.5, "blocks": "", "keyframes": "",
                "hires_keyframes": ""}]}),
    ("a LoRA for the UNet alone", graph(n10=node("LoraLoaderModelOnly", model=("4", 0), lora_name="ink.pt",
     strength_model=0.8), n3=sampler(model=("10", 0))),
     {"loras": [{"name": "ink", "hash": "", "scale": 0.8, "text_scale": 0.0, "blocks": "", "keyframes": "",
                "hires_keyframes": ""}]}),
    ("a VAE of its own", graph(n10=node("VAELoader", vae_name="kl.safetensors"),
     n8=node("VAEDecode", samples=("3", 0), vae=("10", 0))), {"vae": {"name": "kl", "hash": ""}}),
    ("ancestral noise from the card", graph(n3=sampler(sampler_name="euler_ancestral")), {"step_rng": "nv"}),
    ("SDE noise from the CPU", graph(n3=sampler(sampler_name="dpmpp_2m_sde")), {"step_rng": "cpu"}),
    ("SDE noise from the card", graph(n3=sampler(sampler_name="dpmpp_2m_sde_gpu", scheduler="exponential")),
     {"step_rng": "nv", "sampler": "DPM++ 2M SDE", "schedule": "Exponential"}),
    ("ddim is Euler", graph(n3=sampler(sampler_name="ddim", scheduler="ddim_uniform")),
     {"sampler": "Euler", "schedule": "DDIM"}),
    ("a batch", graph(n5=node("EmptyLatentImage", width=512, height=512, batch_size=4)), {"noise_slice": "1/4"}),
    ("one image of a batch", graph(n5=node("EmptyLatentImage", width=512, height=512, batch_size=4),
     n10=node("LatentFromBatch", samples=("3", 0), batch_index=2, length=1),
     n8=node("VAEDecode", samples=("10", 0), vae=("4", 2))), {"noise_slice": "3/4"}),
    ("a second pass by latents", graph(n10=node("LatentUpscale", samples=("3", 0), upscale_method="bislerp",
     width=768, height=1152, crop="disabled"), n11=SECOND, n8=DECODE_SECOND),
     {"hires.upscaler": "latent-bislerp", "hires.width": 768, "hires.height": 1152, "hires.seed": 8,
      "hires.strength": 0.5, "hires.sampler": "DPM++ 2M", "hires.schedule": "Karras", "hires.steps": 10}),
    ("a second pass by a factor", graph(n10=node("LatentUpscaleBy", samples=("3", 0), upscale_method="nearest-exact",
     scale_by=1.5), n11=SECOND, n8=DECODE_SECOND), {"hires.upscaler": "latent-nearest-exact", "hires.width": 768}),
    ("a second pass by an upscaler model", graph(n12=node("VAEDecode", samples=("3", 0), vae=("4", 2)),
     n13=node("UpscaleModelLoader", model_name="4x-Ultra.pth"),
     n14=node("ImageUpscaleWithModel", upscale_model=("13", 0), image=("12", 0)),
     n15=node("ImageScale", image=("14", 0), upscale_method="area", width=1024, height=1536, crop="disabled"),
     n10=node("VAEEncode", pixels=("15", 0), vae=("4", 2)), n11=SECOND, n8=DECODE_SECOND),
     {"hires.upscaler": "model", "hires.resize": "area", "hires.width": 1024,
      "hires.model": {"name": "4x-Ultra", "hash": ""}}),
    ("a second pass by pixels", graph(n12=node("VAEDecode", samples=("3", 0), vae=("4", 2)),
     n15=node("ImageScaleBy", image=("12", 0), upscale_method="lanczos", scale_by=1.5),
     n10=node("VAEEncode", pixels=("15", 0), vae=("4", 2)), n11=SECOND, n8=DECODE_SECOND),
     {"hires.upscaler": "lanczos", "hires.width": 768, "hires.height": 1152}),
    ("advanced steps as a second pass", graph(n3=node("KSamplerAdvanced", **ADVANCED, latent_image=("5", 0),
     add_noise="enable", start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable"),
     n11=node("KSamplerAdvanced", **ADVANCED, latent_image=("3", 0), add_noise="enable", start_at_step=12,
              end_at_step=20, return_with_leftover_noise="disable"), n8=DECODE_SECOND),
     {"hires.steps": 8, "hires.width": 512}),
    ("a pass in two parts", graph(n3=node("KSamplerAdvanced", **ADVANCED, latent_image=("5", 0), add_noise="enable",
     start_at_step=0, end_at_step=9, return_with_leftover_noise="enable"),
     n11=node("KSamplerAdvanced", **ADVANCED, latent_image=("3", 0), add_noise="disable", start_at_step=9,
              end_at_step=10000, return_with_leftover_noise="disable"), n8=DECODE_SECOND),
     {"steps": 20, "hires": None}),
    ("a custom sampler", graph(n10=node("KarrasScheduler", steps=3, sigma_max=14.614642, sigma_min=0.0291675, rho=7.0),
     n11=node("KSamplerSelect", sampler_name="dpmpp_2m"), n3=node("SamplerCustom", add_noise=True, noise_seed=9,
     cfg=7.0, model=("4", 0), positive=("6", 0), negative=("7", 0), sampler=("11", 0), sigmas=("10", 0),
     latent_image=("5", 0))), {"seed": 9, "sampler": "DPM++ 2M", "steps": 3}),
    ("SD Turbo", graph(n10=node("SDTurboScheduler", model=("4", 0), steps=1, denoise=1.0),
     n11=node("KSamplerSelect", sampler_name="euler_ancestral"), n3=node("SamplerCustom", add_noise=True, noise_seed=9,
     cfg=1.0, model=("4", 0), positive=("6", 0), negative=("7", 0), sampler=("11", 0), sigmas=("10", 0),
     latent_image=("5", 0))), {"guidance_scale": 1.0, "steps": 1, "negative_prompt": ""}),
    ("FreeU", graph(n10=node("FreeU_V2", model=("4", 0), b1=1.3, b2=1.4, s1=0.9, s2=0.2), n3=sampler(model=("10", 0))),
     {"freeu": {"version": "v2", "b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}}),
    ("rescaled guidance", graph(n10=node("RescaleCFG", model=("4", 0), multiplier=0.7), n3=sampler(model=("10", 0))),
     {"guidance_rescale": 0.7, "rescales_velocity": True}),
    ("v-prediction", graph(n10=node("ModelSamplingDiscrete", model=("4", 0), sampling="v_prediction", zsnr=True),
     n3=sampler(model=("10", 0))), {"prediction": "v_prediction", "is_zero_snr": True}),
    ("less noise on empty latents", graph(n3=sampler(denoise=0.5, steps=3)), {"steps": 3}),
    ("joined prompts", graph(n10=text("a dog"), n11=node("ConditioningConcat", conditioning_to=("6", 0),
     conditioning_from=("10", 0)), n3=sampler(positive=("11", 0))),
     {"prompt_parts": ({"how": "concat", "text": "a dog", "kept": 1.0},)}),
    ("values from other nodes", graph(n10=node("PrimitiveInt", value=33), n11=node("Seed (rgthree)", seed=12),
     n3=sampler(steps=("10", 0), seed=("11", 0))), {"steps": 33, "seed": 12}),
    ("an embedding", graph(n6=text("a (embedding:EasyDream:1.1)")),
     {"embeddings": [{"name": "EasyDream", "hash": ""}]}),
    ("sizes for SDXL", graph(n6=node("CLIPTextEncodeSDXL", text_g="a", text_l="a", clip=("4", 1), width=4096,
     height=2048, crop_w=8, crop_h=16, target_width=1024, target_height=832),
     n7=node("CLIPTextEncodeSDXL", text_g="b", text_l="b", clip=("4", 1), width=4096, height=2048, crop_w=8, crop_h=16,
             target_width=1024, target_height=832)), {"told_sizes": "4096x2048+8+16,1024x832", "negative_prompt": "b"}),
    ("a second pass that adds no noise", graph(n10=node("LatentUpscaleBy", samples=("3", 0), upscale_method="area",
     scale_by=2), n11=sampler(latent_image=("10", 0), sampler_name="dpm_fast", denoise=0.5), n8=DECODE_SECOND),
     {"step_rng": "", "hires.sampler": "DPM fast"}),
    ("tiles of the VAE", graph(n8=node("VAEDecodeTiled", samples=("3", 0), vae=("4", 2), tile_size=512)), {"seed": 7}),
    ("nodes off the path", graph(n20=node("SomethingUnknown", x=1), n21=node("ShowText", text=("20", 0))), {"seed": 7}),
    ("no negative prompt at a guidance of 1", graph(n3=sampler(cfg=1.0, negative=("10", 0)),
     n10=node("ConditioningZeroOut", conditioning=("6", 0))), {"guidance_scale": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "wanted"), [pytest.param(*rest, id=name) for name, *rest in DRAWN])
def test_a_graph_becomes_a_recipe(value: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = planned(value)

    assert found.drawable == "differs", found.reasons
    assert found.made is not None
    for key, item in wanted.items():
        first, _, second = key.partition(".")
        assert (found.recipe[first][second] if second else found.recipe[first]) == item, key


@pytest.mark.parametrize("place", range(len(DRAWN)))
def test_the_editor_s_format_gives_the_same_recipe(place: int) -> None:
    """The same graph as ComfyUI's editor saves it: values in the order of the widgets, links in a list of their own."""
    from civman.pictures.comfyui_graph import WIDGETS

    value = DRAWN[place][1]
    links: list[list[Any]] = []
    nodes = []
    for key, each in value.items():
        inputs, widgets = [], []
        for name, item in each["inputs"].items():
            if isinstance(item, list):
                links.append([len(links) + 1, int(item[0]), item[1], int(key), len(inputs), "*"])
                inputs.append({"name": name, "type": "*", "link": len(links)})
        order = WIDGETS.get(each["class_type"], tuple(each["inputs"]))
        linked = {entry["name"] for entry in inputs}
        widgets = [0 if name in linked else each["inputs"].get(name, "fixed") for name in order]
        nodes.append({"id": int(key), "type": each["class_type"], "mode": 0, "inputs": inputs, "outputs": [],
                      "widgets_values": widgets})  # fmt: skip
    if any(each["type"].startswith("Seed (") or each["type"] == "ShowText" for each in nodes):
        pytest.skip("the editor's format has no names for the values of other people's nodes")

    assert planned({"nodes": nodes, "links": links}).recipe == planned(value).recipe


def test_bypassed_nodes_pass_on_and_muted_ones_are_not_there() -> None:
    links = [[1, 4, 0, 10, 0, "MODEL"], [2, 10, 0, 3, 0, "MODEL"], [3, 4, 1, 6, 0, "CLIP"], [4, 4, 1, 7, 0, "CLIP"],
             [5, 6, 0, 3, 1, "CONDITIONING"], [6, 7, 0, 3, 2, "CONDITIONING"], [7, 5, 0, 3, 3, "LATENT"],
             [8, 3, 0, 8, 0, "LATENT"], [9, 4, 2, 8, 1, "VAE"], [10, 8, 0, 9, 0, "IMAGE"], [11, 8, 0, 12, 0, "IMAGE"],
             [12, 12, 0, 13, 0, "IMAGE"]]  # fmt: skip

    def each(key: int, kind: str, widgets: list[Any], inputs: list[tuple[str, str, int]], mode: int = 0,
             outputs: tuple[str, ...] = ()) -> dict[str, Any]:  # fmt: skip
        return {"id": key, "type": kind, "mode": mode, "widgets_values": widgets,
                "outputs": [{"type": output} for output in outputs],
                "inputs": [{"name": name, "type": of, "link": link} for name, of, link in inputs]}  # fmt: skip

    nodes = [
        each(4, "CheckpointLoaderSimple", ["dream.safetensors"], []),
        each(10, "FreeU", [1, 1, 1, 1], [("model", "MODEL", 1)], 4, ("MODEL",)),
        each(6, "CLIPTextEncode", ["a"], [("clip", "CLIP", 3)]),
        each(7, "CLIPTextEncode", ["b"], [("clip", "CLIP", 4)]),
        each(5, "EmptyLatentImage", [512, 512, 1], []),
        each(3, "KSampler", [5, "randomize", 20, 7, "euler", "normal", 1],
             [("model", "MODEL", 2), ("positive", "CONDITIONING", 5), ("negative", "CONDITIONING", 6),
              ("latent_image", "LATENT", 7)]),
        each(8, "VAEDecode", [], [("samples", "LATENT", 8), ("vae", "VAE", 9)]),
        each(9, "SaveImage", ["x"], [("images", "IMAGE", 10)]),
        each(12, "ImageSharpen", [1], [("image", "IMAGE", 11)], 2, ("IMAGE",)),
        each(13, "SaveImage", ["x"], [("images", "IMAGE", 12)], 2),
    ]  # fmt: skip

    found = planned({"nodes": nodes, "links": links})

    assert found.drawable == "differs", found.reasons
    assert found.recipe["freeu"] is None
    assert (found.recipe["seed"], found.recipe["steps"]) == (5, 20)


REFINER = node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("img2img", graph(n10=node("LoadImage", image="a.png"), n5=node("VAEEncode", pixels=("10", 0), vae=("4", 2))),
     "needs-input", "node 10 (`LoadImage`) loads the image"),
    ("inpainting", graph(n10=node("LoadImage", image="a.png"), n5=node("VAEEncodeForInpaint", pixels=("10", 0),
     mask=("10", 1), vae=("4", 2))), "needs-input",
     "`a.png`, which the graph does not contain: pass it with `civman replay GRAPH --picture FILE`"),
    ("a mask beneath a drawn image", graph(n10=node("VAEEncodeForInpaint", pixels=("8", 0), vae=("4", 2)),
     n11=SECOND, n12=node("VAEDecode", samples=("11", 0), vae=("4", 2)), n9=node("SaveImage", images=("12", 0))), "no",
     "node 10 (`VAEEncodeForInpaint`) encodes the output of node 8"),
    ("ControlNet", graph(n10=node("ControlNetApply", conditioning=("6", 0), control_net=("11", 0), image=("12", 0)),
     n3=sampler(positive=("10", 0))), "needs-input", "node 10 (`ControlNetApply`) uses a control image"),
    ("a UNet of its own", graph(n10=node("UNETLoader", unet_name="u.safetensors"), n3=sampler(model=("10", 0))), "no",
     "node 10 (`UNETLoader`) loads a UNet"),
    ("text encoders of their own", graph(n10=node("DualCLIPLoader", clip_name1="a"), n6=text("a", ("10", 0))), "no",
     "node 10 (`DualCLIPLoader`) loads text encoders"),
    ("an unknown node on the path", graph(n10=node("IPAdapterApply", model=("4", 0)), n3=sampler(model=("10", 0))),
     "no", "node 10 (`IPAdapterApply`) determines the model"),
    ("area composition", graph(n10=node("ConditioningSetArea", conditioning=("6", 0)), n3=sampler(positive=("10", 0))),
     "no", "node 10 (`ConditioningSetArea`) determines the prompt"),
    ("GLIGEN", graph(n10=node("GLIGENTextBoxApply", conditioning_to=("6", 0)), n3=sampler(positive=("10", 0))), "no",
     "node 10 (`GLIGENTextBoxApply`)"),
    ("unCLIP", graph(n10=node("unCLIPConditioning", conditioning=("6", 0)), n3=sampler(positive=("10", 0))), "no",
     "node 10 (`unCLIPConditioning`)"),
    ("a hypernetwork", graph(n10=node("HypernetworkLoader", model=("4", 0)), n3=sampler(model=("10", 0))), "no",
     "node 10 (`HypernetworkLoader`) determines the model"),
    ("merged models", graph(n10=node("ModelMergeSimple", model1=("4", 0)), n3=sampler(model=("10", 0))), "no",
     "node 10 (`ModelMergeSimple`) determines the model"),
    ("noisy latents composed", graph(n10=node("LatentComposite", samples_to=("3", 0)),
     n11=sampler(latent_image=("10", 0)), n8=DECODE_SECOND), "no",
     "node 10 (`LatentComposite`) determines the latents"),
    ("LCM", graph(n10=node("ModelSamplingDiscrete", model=("4", 0), sampling="lcm", zsnr=False),
     n3=sampler(model=("10", 0))), "no", "node 10 (`ModelSamplingDiscrete`) selects the sampling type `lcm`"),
    ("a finished image that is enlarged", graph(n10=node("ImageUpscaleWithModel", image=("8", 0)),
     n9=node("SaveImage", images=("10", 0))), "no", "node 10 (`ImageUpscaleWithModel`) enlarges the finished image"),
    ("SDXL's refiner", graph(n10=REFINER, n3=node("KSamplerAdvanced", **ADVANCED, latent_image=("5", 0),
     add_noise="enable", start_at_step=0, end_at_step=16, return_with_leftover_noise="enable"),
     n11=node("KSamplerAdvanced", **ADVANCED | {"model": ("10", 0)}, latent_image=("3", 0), add_noise="disable",
              start_at_step=16, end_at_step=10000, return_with_leftover_noise="disable"), n8=DECODE_SECOND), "no",
     "node 11 (`KSamplerAdvanced`) continues node 3 (`KSamplerAdvanced`) with another model"),
    ("a pass in two parts with memory", graph(n3=node("KSamplerAdvanced", **ADVANCED | {"sampler_name": "dpmpp_2m"},
     latent_image=("5", 0), add_noise="enable", start_at_step=0, end_at_step=9, return_with_leftover_noise="enable"),
     n11=node("KSamplerAdvanced", **ADVANCED | {"sampler_name": "dpmpp_2m"}, latent_image=("3", 0),
              add_noise="disable", start_at_step=9, end_at_step=10000, return_with_leftover_noise="disable"),
     n8=DECODE_SECOND), "no", "the sampler `dpmpp_2m` loses its state"),
    ("two texts for SDXL", graph(n6=node("CLIPTextEncodeSDXL", text_g="a", text_l="b", clip=("4", 1))), "no",
     "node 6 (`CLIPTextEncodeSDXL`) gives SDXL's two text encoders different texts"),
    ("other sizes for the negative prompt", graph(n6=node("CLIPTextEncodeSDXL", text_g="a", text_l="a", clip=("4", 1),
     width=4096, height=4096, crop_w=0, crop_h=0, target_width=1024, target_height=1024)), "no",
     "the prompt and the negative prompt have different SDXL size values"),
    ("UniPC", graph(n3=sampler(sampler_name="uni_pc")), "no", "uses `uni_pc`"),
    ("a sampler that civman lacks", graph(n3=sampler(sampler_name="some_new_one")), "no", "unknown sampler"),
    ("a schedule that civman lacks", graph(n3=sampler(scheduler="linear_quadratic")), "no", "`linear_quadratic`"),
    ("another prompt in the second pass", graph(n10=node("LatentUpscaleBy", samples=("3", 0), upscale_method="area",
     scale_by=2), n12=text("other"), n11=sampler(latent_image=("10", 0), positive=("12", 0)), n8=DECODE_SECOND), "no",
     "node 11 (`KSampler`) uses another prompt"),
    ("a second pass that alone adds noise", graph(n3=sampler(sampler_name="dpm_fast"),
     n10=node("LatentUpscaleBy", samples=("3", 0), upscale_method="area", scale_by=2),
     n11=sampler(latent_image=("10", 0), sampler_name="euler_ancestral"), n8=DECODE_SECOND), "no",
     "adds noise in its steps"),
    ("three passes", graph(n10=sampler(latent_image=("3", 0)), n11=sampler(latent_image=("10", 0)), n8=DECODE_SECOND),
     "no", "more than two passes"),
    ("computed values", graph(n10=node("MathExpression", a=1), n3=sampler(steps=("10", 0))), "no",
     "node 10 (`MathExpression`) computes the input `steps`"),
    ("a strength of almost nothing", graph(n3=sampler(denoise=1e-9)), "no", "supports only 1 to 10000"),
    ("more steps than ComfyUI takes", graph(n3=sampler(steps=10**9)), "no", "ComfyUI allows only 1 to 10000"),
    ("a circle", graph(n3=sampler(latent_image=("3", 0))), "no", "more than two passes"),
    ("nothing saved", {key: item for key, item in BASE.items() if key != "9"}, "no", "saves no image"),
    ("missing links", graph(n3=sampler(model=("99", 0))), "no", "no node of the graph provides a model"),
    ("a Flux model", graph(n4=node("CheckpointLoaderSimple", ckpt_name="flux1-dev-fp8.safetensors")), "no", "flux1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "verdict", "words"), [pytest.param(*rest, id=name) for name, *rest in REFUSED]
)  # fmt: skip
def test_a_graph_that_does_more_names_the_node(value: dict[str, Any], verdict: str, words: str) -> None:
    found = planned(value)

    assert found.drawable == verdict, found.reasons
    assert words in found.reasons[0]
    assert found.made is None


def test_civitai_s_answer_may_hold_the_graph() -> None:
    meta = {"comfy": json.dumps({"prompt": BASE, "workflow": {}}).replace("8.0", "NaN"), "steps": 3}

    found = redraw({"id": 5, "meta": meta, "baseModel": "SD 1.5"})

    assert found.id == 5
    assert (found.recipe["steps"], found.recipe["guidance_scale"]) == (20, 0.0)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "euler", "karras", "enable", "center", "v_prediction", 0, 0.0, 1e-9, 0.00001, 10**9, -1]),
    st.lists(st.one_of(st.integers(0, 20), st.text(max_size=2)), max_size=3),
    st.tuples(st.integers(0, 16).map(str), st.integers(-1, 3)).map(list),
    st.dictionaries(st.text(max_size=3), st.none()),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(DRAWN) - 1), st.data())
def test_no_graph_makes_the_reader_fail(place: int, data: st.DataObject) -> None:
    value = json.loads(json.dumps(DRAWN[place][1]))
    for _ in range(data.draw(st.integers(1, 3))):
        inputs = value[data.draw(st.sampled_from(sorted(value)))]["inputs"]
        if inputs:
            inputs[data.draw(st.sampled_from(sorted(inputs)))] = data.draw(JUNK)

    found = planned(value)

    assert found.drawable in ("exact", "differs", "needs-input", "no")
    assert (found.made is not None) == bool(found.recipe)
    assert found.reasons


def test_files_named_by_air_are_looked_for_by_their_versions() -> None:
    from civman.planning.site_image import settings_row

    air = "urn:air:sd1:checkpoint:civitai:4384@128713"
    lora = "urn:air:sd1:lora:civitai:7@8.safetensors"
    value = graph(
        n4=node("CheckpointLoaderSimple", ckpt_name=air), n3=sampler(model=("10", 0)),
        n10=node("LoraLoaderModelOnly", model=("4", 0), lora_name=lora, strength_model=1.0),
    )  # fmt: skip

    joined = settings_row(None, json.dumps(value))
    found = redraw(joined.row)

    assert found.drawable == "exact", found.reasons
    named = {(each.role, each.name): joined.versions[each.role, each.name].id for each in found.resources}
    assert named == {("checkpoint", air): 128713, ("lora", "urn:air:sd1:lora:civitai:7@8"): 8}


FIXTURES = {
    "a1111-jpg-usercomment.jpg": ("differs", "did not record the VAE"),
    "a1111-png-tiny.png": ("differs", "did not record the VAE"),
    "civitai-site-jpg.jpg": ("differs", "made with ComfyUI, perhaps by CivitAI's generator"),
    "comfy-flux_dev_checkpoint_example.png": ("no", "node 35 (`FluxGuidance`) determines the prompt"),
    "comfy-img2img_workflow.png": ("needs-input", "node 10 (`LoadImage`) loads the image"),
    "comfy-lora.png": ("differs", "the settings name the checkpoint `v1-5-pruned-emaonly` without a hash"),
    "comfy-qwen_image_basic_example.png": ("no", "node 66 (`ModelSamplingAuraFlow`) determines the model"),
    "invokeai_dream1.png": ("no", "InvokeAI samples with diffusers' schedulers"),
    "novelai-png.png": ("no", "NovelAI renders with models of its own"),
    "swarm-jpg-flux.jpg": ("no", "the name of the checkpoint `flux1-dev-fp8` contains flux1, so it is not"),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_real_images_have_a_plan_or_a_reason(name: str) -> None:
    from civman.planning.redraw_request import settings_in
    from civman.planning.site_image import settings_row

    if not (SHARED / name).is_file():
        pytest.skip("the shared images are not here")
    verdict, words = FIXTURES[name]
    found_text = settings_in(None, SHARED / name)
    assert found_text is not None

    found = redraw(settings_row(None, found_text).row)

    assert found.drawable == verdict, found.reasons
    assert any(words in reason for reason in found.reasons), found.reasons
    assert (found.made is not None) == (verdict == "differs")


SWARM = {"prompt": "a (cat:1.2)", "negativeprompt": "bad", "model": "sets/dream", "seed": 7, "steps": 16,
         "cfgscale": 2.0, "width": 832, "height": 1216, "sampler": "dpmpp_2m", "scheduler": "karras",
         "loras": ["styleA", "turbo"], "loraweights": ["0.4", "-0.7"], "loratencweights": ["1", "-0.7"],
         "clipstopatlayer": -2, "vae": "kl"}  # fmt: skip
MODELS = [{"name": "sets/dream.safetensors", "param": "model", "hash": "0x84FC41EA0821FA0A"}]


def test_swarmui_is_rendered_by_comfyui_s_rules() -> None:
    found = redraw({"foreign": json.dumps({"sui_image_params": SWARM, "sui_models": MODELS})})

    assert found.drawable == "differs", found.reasons
    made = found.recipe
    assert made["checkpoint"] == {"name": "dream", "hash": "84fc41ea0821"}
    assert [(each["name"], each["scale"], each["text_scale"]) for each in made["loras"]] == [
        ("styleA", 0.4, 1.0), ("turbo", -0.7, -0.7)
    ]  # fmt: skip
    assert (made["sampler"], made["schedule"], made["clip_skip"], made["emphasis"]) == (
        "DPM++ 2M", "Karras", 2, "comfyui"
    )  # fmt: skip
    assert made["vae"] == {"name": "kl", "hash": ""}


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({"variationseedstrength": 0.2}, "no", "`variationseedstrength`"),
        ({"refinermethod": "PostApply"}, "no", "refiner"),
        ({"initimage": "x"}, "needs-input", "`initimage`"), ({"scheduler": "turbo"}, "no", "`turbo`"),
        ({"prompt": "a <segment:face>"}, "no", "`<segment>`"), ({"steps": None}, "no", "no steps"),
        ({"sampler": "uni_pc"}, "no", "uni_pc"),
    ],
)  # fmt: skip
def test_swarmui_s_other_settings_are_named(change: dict[str, Any], verdict: str, words: str) -> None:
    found = redraw({"foreign": json.dumps({"sui_image_params": SWARM | change})})

    assert found.drawable == verdict, found.reasons
    assert any(words in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"positive_prompt": "a", "generation_mode": "txt2img", "scheduler": "euler"}, "InvokeAI"),
        ({"app_id": "invoke-ai/InvokeAI", "image": {}}, "InvokeAI"), ({"Dream": '"a" -s 50'}, "InvokeAI"),
        ({"base_model": "juggernaut", "guidance_scale": 4, "sharpness": 2}, "Fooocus"),
        ({"software": "RuinedFooocus", "Prompt": "a"}, "RuinedFooocus"), ({"uc": "bad", "scale": 10}, "NovelAI"),
    ],
)  # fmt: skip
def test_programs_with_rules_of_their_own_are_refused_with_these_rules(value: dict[str, Any], words: str) -> None:
    found = redraw({"foreign": json.dumps(value)})

    assert found.drawable == "no"
    assert words in found.reasons[0]


PLAIN = {"prompt": "a cat", "Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "5", "Size": "512x512",
         "Model": "dream", "Model hash": "0123456789"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict", "wanted", "words"),
    [
        ({"Version": "ComfyUI"}, "differs", {"emphasis": "comfyui", "rng": "cpu", "step_rng": "nv"},
         "was made with ComfyUI"),
        ({"Civitai resources": "[]"}, "differs", {"emphasis": "comfyui", "odd_sizes": "forge"}, "CivitAI's generator"),
        ({"Version": "f2.0.1v1.10.1-previous-304"}, "exact", {"emphasis": "original", "odd_sizes": "forge"}, ""),
        ({"Version": "v1.10.1"}, "exact", {"odd_sizes": "a1111"}, ""),
        ({"Version": "stable-diffusion.cpp", "RNG": "cuda"}, "differs", {"rng": "nv"}, "stable-diffusion.cpp"),
        ({"Version": "stable-diffusion.cpp", "RNG": "std_default"}, "no", {}, "C++"),
        ({"Version": "Fooocus v2.5.0"}, "no", {}, "Fooocus"), ({"Parser": "Full parser"}, "differs", {}, "SD.Next"),
    ],
    ids=str,
)  # fmt: skip
def test_other_programs_that_write_a1111_s_text(
    changes: dict[str, Any], verdict: str, wanted: dict[str, Any], words: str
) -> None:
    found = redraw({"meta": PLAIN | changes})

    assert found.drawable == verdict, found.reasons
    assert wanted.items() <= found.recipe.items()
    assert words in " ".join(found.reasons)
