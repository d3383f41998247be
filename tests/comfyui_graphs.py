"""Graphs as ComfyUI saves them in images (API format), built for settings that civman has options for."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SAMPLERS = {
    "euler": "Euler", "euler_ancestral": "Euler a", "heun": "Heun", "dpm_2": "DPM2", "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS", "dpmpp_2m": "DPM++ 2M", "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE", "dpmpp_3m_sde": "DPM++ 3M SDE", "ddim": "Euler", "ipndm": "iPNDM",
    "euler_cfg_pp": "Euler CFG++", "res_multistep": "RES multistep", "lcm": "LCM",
}  # fmt: skip
SCHEDULES = {
    "normal": "Normal", "karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform",
    "simple": "Simple", "ddim_uniform": "DDIM", "beta": "Beta", "kl_optimal": "KL Optimal",
}  # fmt: skip
CARD = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde_gpu", "lcm")
CPU = ("dpmpp_sde", "dpmpp_3m_sde")
SKIPPED = ("schedule", "sampler")


@dataclass
class Builder:
    """A graph under construction, with the options of `civman render` that ask for the same image."""

    nodes: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    def add(self, kind: str, **inputs: Any) -> list[Any]:
        """Add a node and return the link to its first output."""
        key = str(len(self.nodes) + 3)
        self.nodes[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
        return [key, 0]

    def ask(self, *words: object) -> None:
        self.options += map(str, words)


def out(link: list[Any], output: int) -> list[Any]:
    return [link[0], output]


def built(case: int, kind: str) -> Builder:
    """A graph with settings that follow from the number of the case; `kind` is sd1 or sdxl."""
    pick = random.Random(f"{kind} {case}")
    made = Builder()
    made.ask("--emphasis", "comfyui", "--sampling-rules", "comfyui", "--rng", "cpu")
    loader = made.add("CheckpointLoaderSimple", ckpt_name=f"models/tiny-{kind}.safetensors")
    model, clip = _loras(made, pick, kind, out(loader, 0), out(loader, 1))
    if case % 3 == 0:
        layer = pick.choice([1, 2])
        clip = made.add("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-layer)
        made.ask("--clip-skip", layer)
    model = _patched(made, pick, case, model)
    cfg = pick.choice([1.0, 3.0, 5.5])
    texts = _texts(made, pick, case, kind, clip, cfg)
    width, height = pick.choice([(64, 64), (72, 56), (64, 96)])
    count = pick.choice([1, 1, 3])
    latents = made.add("EmptyLatentImage", width=width, height=height, batch_size=count)
    made.ask("--size", f"{width}x{height}", "--cfg", cfg)
    if count > 1:
        made.ask("--noise-slice", f"1/{count}")
    sampler, schedule = pick.choice(list(SAMPLERS)), pick.choice(list(SCHEDULES))
    steps, seed = pick.choice([2, 3, 5]), pick.randrange(2**53)
    made.ask("--seed", seed, "--sampler", SAMPLERS[sampler])
    sample = (_ksampler, _advanced, _custom, _with_primitives)[case % 4]
    latents = sample(made, pick, model, texts, latents, cfg, sampler, schedule, steps, seed)
    vae = out(loader, 2)
    if case % 5 == 1:
        vae = made.add("VAELoader", vae_name="other-vae.safetensors")
        made.ask("--vae", "other-vae")
    second = sampler
    if case % 2:
        second = _second_pass(made, pick, case, model, texts, latents, vae, (width, height), sampler)
    sources = {source for each in (sampler, second) if (source := _source(each))}
    if sources:
        made.ask("--step-rng", sources.pop())
    made.add("SaveImage", images=made.add("VAEDecode", samples=_last(made), vae=vae), filename_prefix="ComfyUI")
    return made


def _source(sampler: str) -> str:
    return "nv" if sampler in CARD else "cpu" if sampler in CPU else ""


def _last(made: Builder) -> list[Any]:
    key = next(key for key in reversed(made.nodes) if made.nodes[key]["class_type"].startswith(("KSampler", "SamplerC"))
               and made.nodes[key]["class_type"] != "KSamplerSelect")  # fmt: skip
    return [key, 0]


def _loras(made: Builder, pick: random.Random, kind: str, model: Any, clip: Any) -> tuple[Any, Any]:
    prefix = "xl-" if kind == "sdxl" else ""
    for name in pick.choice([(), ("ink",), ("ink", "ink2")]):
        scale, text = pick.choice([0.5, 1.0, -0.75]), pick.choice([0.0, 0.5, 1.0])
        if pick.random() < 0.3:
            model, text = made.add("LoraLoaderModelOnly", model=model, lora_name=f"{prefix}{name}.safetensors",
                                   strength_model=scale), 0.0  # fmt: skip
        else:
            model = made.add("LoraLoader", model=model, clip=clip, lora_name=f"{prefix}{name}.safetensors",
                             strength_model=scale, strength_clip=text)  # fmt: skip
            clip = out(model, 1)
        made.ask("--lora", f"{prefix}{name}:{scale}:{text}")
    return model, clip


def _patched(made: Builder, pick: random.Random, case: int, model: Any) -> Any:
    if case % 7 == 2:
        version = pick.choice(["v1", "v2"])
        model = made.add("FreeU_V2" if version == "v2" else "FreeU", model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)
        made.ask("--freeu", f"{version},1.3,1.4,0.9,0.2")
    if case % 7 == 4:
        model = made.add("RescaleCFG", model=model, multiplier=0.6)
        made.ask("--cfg-rescale", 0.6, "--cfg-rescale-v")
    return made.add("Reroute", **{"": model}) if case % 6 == 5 else model


def _texts(made: Builder, pick: random.Random, case: int, kind: str, clip: Any, cfg: float) -> tuple[Any, Any]:
    prompt = pick.choice(["a (cat:1.4) on [grass]", "a castle, BREAK (red) \\(old\\)", "one AND two <lora:x:1>"])
    if kind == "sd1" and case % 4 == 3:
        prompt += " embedding:easydream, night"
    negative = pick.choice(["", "bad (hands:1.2)"])
    positive = made.add("CLIPTextEncode", text=prompt, clip=clip)
    how = pick.choice(["", "", "concat", "average", "combine"])
    if how == "combine" and "--cfg-rescale" in made.options:
        how = ""
    if how:
        other = made.add("CLIPTextEncode", text="a dog (running:1.3)", clip=clip)
        if how == "combine":
            positive = made.add("ConditioningCombine", conditioning_1=positive, conditioning_2=other)
            made.ask("--join-prompt", "combine:a dog (running:1.3)")
        elif how == "concat":
            positive = made.add("ConditioningConcat", conditioning_to=positive, conditioning_from=other)
            made.ask("--join-prompt", "concat:a dog (running:1.3)")
        else:
            positive = made.add("ConditioningAverage", conditioning_to=positive, conditioning_from=other,
                                conditioning_to_strength=0.7)  # fmt: skip
            made.ask("--join-prompt", "average=0.7:a dog (running:1.3)")
    unwanted = made.add("CLIPTextEncode", text=negative, clip=clip)
    made.options = [prompt, "--negative", "" if cfg == 1 else negative, *made.options]
    return positive, unwanted


Sample = Callable[..., list[Any]]


def _ksampler(made: Builder, pick: random.Random, model: Any, texts: Any, latents: Any, cfg: float, sampler: str,
              schedule: str, steps: int, seed: int) -> list[Any]:  # fmt: skip
    made.ask("--steps", steps, "--schedule", SCHEDULES[schedule])
    return made.add("KSampler", model=model, positive=texts[0], negative=texts[1], latent_image=latents, seed=seed,
                    steps=steps, cfg=cfg, sampler_name=sampler, scheduler=schedule, denoise=1.0)  # fmt: skip


def _advanced(made: Builder, pick: random.Random, model: Any, texts: Any, latents: Any, cfg: float, sampler: str,
              schedule: str, steps: int, seed: int) -> list[Any]:  # fmt: skip
    made.ask("--steps", steps, "--schedule", SCHEDULES[schedule])
    same = {"model": model, "positive": texts[0], "negative": texts[1], "steps": steps, "cfg": cfg,
            "sampler_name": sampler, "scheduler": schedule, "noise_seed": seed}  # fmt: skip
    if sampler not in ("euler", "heun", "dpm_2"):
        return made.add("KSamplerAdvanced", **same, latent_image=latents, add_noise="enable", start_at_step=0,
                        end_at_step=10000, return_with_leftover_noise="disable")  # fmt: skip
    first = made.add("KSamplerAdvanced", **same, latent_image=latents, add_noise="enable", start_at_step=0,
                     end_at_step=1, return_with_leftover_noise="enable")  # fmt: skip
    return made.add("KSamplerAdvanced", **same | {"noise_seed": 0}, latent_image=first, add_noise="disable",
                    start_at_step=1, end_at_step=10000, return_with_leftover_noise="disable")  # fmt: skip


def _custom(made: Builder, pick: random.Random, model: Any, texts: Any, latents: Any, cfg: float, sampler: str,
            schedule: str, steps: int, seed: int) -> list[Any]:  # fmt: skip
    if sampler in ("dpm_2", "dpm_2_ancestral"):
        return _ksampler(made, pick, model, texts, latents, cfg, sampler, schedule, steps, seed)
    made.ask("--steps", steps, "--schedule", SCHEDULES[schedule])
    guider = made.add("CFGGuider", model=model, positive=texts[0], negative=texts[1], cfg=cfg)
    sigmas = made.add("BasicScheduler", model=model, scheduler=schedule, steps=steps, denoise=1.0)
    chosen = made.add("KSamplerSelect", sampler_name=sampler)
    noise = made.add("RandomNoise", noise_seed=seed)
    return made.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=chosen, sigmas=sigmas,
                    latent_image=latents)  # fmt: skip


def _with_primitives(made: Builder, pick: random.Random, model: Any, texts: Any, latents: Any, cfg: float, sampler: str,
                     schedule: str, steps: int, seed: int) -> list[Any]:  # fmt: skip
    counts = made.add("PrimitiveInt", value=steps)
    scale = made.add("PrimitiveFloat", value=cfg)
    link = _ksampler(made, pick, model, texts, latents, cfg, sampler, schedule, steps, seed)
    made.nodes[link[0]]["inputs"] |= {"steps": counts, "cfg": made.add("Reroute", **{"": scale})}
    return link


def _second_pass(made: Builder, pick: random.Random, case: int, model: Any, texts: Any, latents: Any, vae: Any,
                 size: tuple[int, int], first: str) -> str:  # fmt: skip
    strength, steps, seed = pick.choice([0.3, 0.5, 0.8]), pick.choice([2, 3]), pick.randrange(2**53)
    width, height = size[0] * 3 // 2 // 8 * 8, size[1] * 3 // 2 // 8 * 8
    way = pick.choice(["nearest-exact", "bilinear", "bicubic", "area", "bislerp", "lanczos"])
    if way != "lanczos" and (way == "bislerp" or pick.random() < 0.5):
        begun = made.add("LatentUpscale", samples=latents, upscale_method=way, width=width, height=height,
                         crop="disabled")  # fmt: skip
        upscaler = "latent" if way == "bilinear" else f"latent-{way}"
    else:
        image = made.add("VAEDecode", samples=latents, vae=vae)
        image = made.add("ImageScale", image=image, upscale_method=way, width=width, height=height, crop="disabled")
        begun, upscaler = made.add("VAEEncode", pixels=image, vae=vae), way
    fitting = [name for name in SAMPLERS if {_source(name), _source(first)} != {"nv", "cpu"}]
    sampler, schedule = pick.choice(fitting), pick.choice(list(SCHEDULES))
    inputs = made.nodes[_last(made)[0]]["inputs"]
    guided = inputs.get("cfg")
    cfg = 1.0 if "1.0" in made.options[made.options.index("--cfg") + 1] else 4.0
    made.add("KSampler", model=model, positive=texts[0], negative=texts[1], latent_image=begun, seed=seed, steps=steps,
             cfg=cfg, sampler_name=sampler, scheduler=schedule, denoise=strength)  # fmt: skip
    made.ask("--hires", f"{width}x{height}", "--hires-trim", "0x0", "--upscaler", upscaler, "--hires-steps", steps,
             "--hires-strength", strength, "--hires-seed", seed, "--hires-cfg", cfg, "--hires-sampler",
             SAMPLERS[sampler], "--hires-schedule", SCHEDULES[schedule])  # fmt: skip
    assert guided is not None or inputs
    return sampler


def from_image(case: int, kind: str) -> Builder:
    """A graph that starts from the image "source.png" of 75x61 pixels; the mask is its transparency, or "mask.png"."""
    pick = random.Random(f"image {kind} {case}")
    made = Builder()
    made.ask("a (cat:1.4)", "--negative", "bad", "--emphasis", "comfyui", "--sampling-rules", "comfyui", "--rng", "cpu")
    loader = made.add("CheckpointLoaderSimple", ckpt_name=f"models/tiny-{kind}.safetensors")
    model, vae = out(loader, 0), out(loader, 2)
    texts = [made.add("CLIPTextEncode", text=words, clip=out(loader, 1)) for words in ("a (cat:1.4)", "bad")]
    image = loaded = made.add("LoadImage", image="source.png", upload="image")
    made.ask("--init", "source.png")
    if case % 3 == 1:
        way = pick.choice(["nearest-exact", "bilinear", "bicubic", "area", "lanczos"])
        image = made.add("ImageScale", image=image, upscale_method=way, width=80, height=56, crop="disabled")
        made.ask("--resize-mode", f"comfyui {way}", "--size", "80x56")
    else:
        made.ask("--resize-mode", "comfyui crop")
    mask = case % 4
    shades = out(loaded, 1)
    if mask == 2:
        channel = pick.choice(["red", "green", "blue"])
        shades = made.add("LoadImageMask", image="mask.png", channel=channel)
        made.ask("--mask", "mask.png", "--mask-channel", channel)
    elif mask:
        made.ask("--mask", "source.png", "--mask-channel", "alpha")
    if mask == 3:
        grow = pick.choice([0, 6, 7])
        latents = made.add("VAEEncodeForInpaint", pixels=image, vae=vae, mask=shades, grow_mask_by=grow)
        made.ask("--grow-mask", grow)
    else:
        latents = made.add("VAEEncode", pixels=image, vae=vae)
        latents = made.add("SetLatentNoiseMask", samples=latents, mask=shades) if mask else latents
    strength = pick.choice([0.3, 0.6, 1.0])
    sampler, schedule = pick.choice(["euler", "heun", "dpmpp_2m", "euler_ancestral"]), pick.choice(list(SCHEDULES))
    made.ask("--strength", strength, "--seed", 5, "--sampler", SAMPLERS[sampler], "--cfg", 3.0)
    latents = _ksampler(made, pick, model, texts, latents, 3.0, sampler, schedule, pick.choice([2, 3, 4]), 5)
    made.nodes[latents[0]]["inputs"]["denoise"] = strength
    if sampler in CARD:
        made.ask("--step-rng", "nv")
    if case % 8 == 4:
        made.add("LatentUpscale", samples=latents, upscale_method="bicubic", width=96, height=80, crop="disabled")
        again = {"latent_image": [str(len(made.nodes) + 2), 0], "denoise": 0.5, "seed": 9}
        latents = made.add("KSampler", **made.nodes[latents[0]]["inputs"] | again)
        made.ask("--hires", "96x80", "--hires-trim", "0x0", "--upscaler", "latent-bicubic", "--hires-strength", "0.5",
                 "--hires-seed", "9", "--hires-cfg", "3", "--hires-sampler", SAMPLERS[sampler], "--hires-schedule",
                 SCHEDULES[schedule])  # fmt: skip
    made.add("SaveImage", images=made.add("VAEDecode", samples=latents, vae=vae), filename_prefix="ComfyUI")
    return made
