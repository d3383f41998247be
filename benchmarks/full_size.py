"""Draws one picture with each full-size shape, in civman and in plain diffusers, and compares them.

    python benchmarks/full_size.py [--families sd1 sdxl] [--work DIR] [--keep] [--tiny]

Per family: a checkpoint in the original single-file layout with the published dimensions and seeded random weights in
float16 (SD 1: 2.1 GB, SDXL: 6.9 GB) is written to DIR and imported; `civman render` draws it in float32 (256x256, four
steps of Euler, guidance 5); diffusers' own pipeline (`from_single_file`, its own scheduler and tokenizers) draws the
same from the same noise. The run fails where a value of the two pictures differs by more than 1 of 255. Weights are
scaled so that every layer passes on what it gets; what they draw is noise, so the picture is kept with `--force`.

Each side runs in a process of its own. civman leaves SDXL's weights in their file where memory is short; diffusers'
side needs 20 GB of memory for SDXL. Files are deleted at the end.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from render_load import FULL, PIPELINES, ROOT, write_configs

PROMPT, NEGATIVE, SEED, STEPS, SIDE, CFG = "a harbour at dawn, oil painting", "blurry", 7, 4, 256, 5.0
CLOSE = 1


def make_files(family: str, folder: Path, *, tiny: bool) -> None:
    """The checkpoint and a config folder with tokenizers; nothing where they are there already."""
    if (folder / "done").is_file():
        return
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    shapes = importlib.import_module("tiny_models")
    folder.mkdir(parents=True, exist_ok=True)
    if tiny:
        shapes.write(folder / "base.safetensors", family)
    else:
        for name, config in FULL[family].items():
            shapes.KINDS[family][name] |= config
        shapes._randomized = lambda model, _seed: {  # noqa: SLF001  # structure only, see `write_scaled`
            name: value for name, value in sorted(model.state_dict().items()) if value.is_floating_point()
        }
        with torch.device("meta"):
            tensors = shapes.tensors_of(family)
        write_scaled(folder / "base.safetensors", {name: tuple(value.shape) for name, value in tensors.items()})
    write_configs(shapes, family, folder / "config")
    (folder / "done").touch()


def write_scaled(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """float16: matrices and kernels of variance 1 / inputs, scales of norms about 1, biases about 0."""
    import math

    import torch

    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(1 << 24, generator=generator)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            left = math.prod(shape)
            is_scale = len(shape) == 1 and name.endswith("weight")
            spread = 0.02 if len(shape) < 2 else (left / shape[0]) ** -0.5
            while left > 0:
                begin = int(torch.randint(1 << 22, (), generator=generator))
                part = pool[begin : begin + left]
                file.write((part * spread + (1.0 if is_scale else 0.0)).half().numpy().tobytes())
                left -= len(part)


def draw_civman(_family: str, folder: Path) -> dict[str, Any]:
    """By the command line, from import to picture."""
    ways = {"CIVMAN_LIBRARY": str(folder / "library"), "CIVMAN_OFFLINE": "1"}

    def run(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "civman", *words, "--json"], check=False, capture_output=True, text=True,
            env=os.environ | ways, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"civman {' '.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return json.loads(done.stdout)

    run("import", "--offline", str(folder / "base.safetensors"))
    made = run(
        "render", "base", PROMPT, "--negative", NEGATIVE, "--sampler", "Euler", "--schedule", "Normal",
        "--steps", str(STEPS), "--size", f"{SIDE}x{SIDE}", "--seed", str(SEED), "--cfg", str(CFG),
        "--precision", "float32", "--device", "cpu", "--force", "--output", str(folder / "civman.png"),
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    return {"path": made["render"][0]["path"], "peak_gb": peak}


def draw_diffusers(family: str, folder: Path) -> dict[str, Any]:
    """The script that everybody writes, in float32, one part of the model after the other."""
    import diffusers
    import torch

    pipe = getattr(diffusers, PIPELINES[family]).from_single_file(
        str(folder / "base.safetensors"), config=str(folder / "config"), torch_dtype=torch.float16,
        local_files_only=True,
    )  # fmt: skip
    pipe.scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    with torch.no_grad():
        encoders = [name for name in ("text_encoder", "text_encoder_2") if name in pipe.components]
        for name in encoders:
            getattr(pipe, name).float()
        encoded = pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                                     negative_prompt=NEGATIVE)  # fmt: skip
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        given = dict(zip(names, (each.float() for each in encoded), strict=False))
        for name in encoders:  # give their memory back
            setattr(pipe, name, None)
        pipe.unet.float()
        pipe.vae.float()
        noise = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(SEED))
        image = pipe(
            **given, num_inference_steps=STEPS, guidance_scale=CFG, width=SIDE, height=SIDE, latents=noise
        ).images[0]
    image.save(folder / "diffusers.png")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"path": str(folder / "diffusers.png"), "peak_gb": peak}


SIDES = {"civman": draw_civman, "diffusers": draw_diffusers}


def drawn(side: str, family: str, folder: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--one", side, "--families", family, "--work", str(folder)],
        check=False, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{side} {family} gave nothing (exit {done.returncode})\n{done.stdout}")
    values: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return values | {"seconds": time.perf_counter() - begun}


def compared(family: str, work: Path, *, tiny: bool, keep: bool) -> bool:
    """Draw on both sides, print how far apart they are, and tell whether that is close."""
    import numpy as np
    from PIL import Image

    folder = work / family
    make_files(family, folder, tiny=tiny)
    weight = (folder / "base.safetensors").stat().st_size / 1e9
    sides = {side: drawn(side, family, folder) for side in SIDES}
    mine, theirs = (np.asarray(Image.open(each["path"])).astype(int) for each in sides.values())
    furthest, spread = int(np.abs(mine - theirs).max()), float(theirs.std())
    error = float(((mine - theirs) ** 2).mean())
    decibels = f"{10 * np.log10(255**2 / error):.1f} dB" if error else "identical"
    each = ", ".join(f"{side} {v['seconds']:.0f} s, {v['peak_gb']:.1f} GB" for side, v in sides.items())
    differing = f"{(mine != theirs).mean():.2%} of values differ"
    print(f"{family}: {weight:.2f} GB on disk; furthest value {furthest} of 255, {decibels}, {differing}; ", end="")
    print(f"the picture's own spread {spread:.0f} of 255; {each}", flush=True)
    if not keep:
        shutil.rmtree(folder)
    return furthest <= CLOSE and spread > 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["sd1", "sdxl"], choices=["sd1", "sdxl"])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "full-size")
    parser.add_argument("--keep", action="store_true", help="keep the files of each family")
    parser.add_argument("--tiny", action="store_true", help="the tests' tiny models: only shows that it runs")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps(SIDES[options.one](options.families[0], options.work)), flush=True)
        return
    import diffusers
    import torch

    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    results = [compared(family, options.work, tiny=options.tiny, keep=options.keep) for family in options.families]
    if not all(results):
        raise SystemExit(f"further apart than {CLOSE} of 255, or no picture")


if __name__ == "__main__":
    main()
