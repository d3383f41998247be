"""Times and weighs loading: civman against plain diffusers, on full-size random checkpoints with two LoRAs.

    python benchmarks/render_load.py [--families sdxl sd1] [--rounds 3] [--work DIR] [--tiny]

Per family, each in processes of their own, taken in turn, files in the page cache:
* load: from the file to a model with two LoRAs merged in float16 (`from_single_file` + `load_lora_weights` +
  `fuse_lora` with a local config), libraries imported before; then the UNet is called once (64 px), and the peak of
  resident memory noted, before and after that;
* start: from the start of the process to the first denoising step: until the UNet is called, and until the step is
  done (256 px), with the peak of resident memory until then; in `--dtype`, the same on all sides (float16 on CUDA).

civman comes twice: with the whole model in memory, and with `--low-vram` ("sparing"), which leaves it in its file.
Full size needs 7 GB (SDXL) and 2.2 GB of disk; the start in float32 14 GB of memory for SDXL, in bfloat16 half of it.
`--tiny` only shows that it runs. Files are kept in DIR and used again.
"""

import argparse
import importlib
import json
import math
import os
import platform
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PROMPT, LORAS = "a harbour at dawn, oil painting", ("first", "second")
KINDS = {"sd1": "sd1", "sdxl": "sdxl"}
PIPELINES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
PRECISIONS = ("float32", "bfloat16")
_WIDE = {"sample_size": 64, "norm_num_groups": 32}
_VAE = {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 512}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
           "projection_dim": 768}  # fmt: skip
FULL: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": _WIDE | {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768},
        "vae": _VAE, "text_encoder": _CLIP_L,
    },
    "sdxl": {
        "unet": _WIDE | {
            "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
            "transformer_layers_per_block": [1, 2, 10], "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": _VAE, "text_encoder": _CLIP_L,
        "text_encoder_2": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                           "num_attention_heads": 20, "projection_dim": 1280},
    },
}  # fmt: skip
"""Where the published dimensions differ from those of the tests' tiny models."""


# -- files -----------------------------------------------------------------------------------------------------------


def make_files(family: str, folder: Path, *, tiny: bool) -> None:
    """Checkpoint, config folder with tokenizers, and two LoRAs; nothing where they are there already."""
    if (folder / "done").is_file():
        return
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    shapes = importlib.import_module("tiny_models")
    if not tiny:
        for name, config in FULL[family].items():
            shapes.KINDS[family][name] |= config
        # structure only: a full model in float32 would need 14 GB to be thrown away
        shapes._randomized = lambda model, _seed: {  # noqa: SLF001
            name: value for name, value in sorted(model.state_dict().items()) if value.is_floating_point()
        }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if tiny:
        shapes.write(folder / "base.safetensors", family)
    else:
        with torch.device("meta"):
            tensors = shapes.tensors_of(family)
        write_random(folder / "base.safetensors", {name: tuple(value.shape) for name, value in tensors.items()}, 0)
    write_configs(shapes, family, folder / "config")
    for seed, name in enumerate(LORAS, start=1):
        write_random(folder / f"{name}.safetensors", lora_shapes(shapes.KINDS[family]), seed)
    (folder / "done").touch()


def write_random(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """float16 noise around 0 under these names, streamed."""
    import torch

    header: dict[str, Any] = {}
    end = 0
    for name, shape in sorted(shapes.items()):
        count = 2
        for side in shape:
            count *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = (torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed)) * 0.02).half().numpy().tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while end > 0:
            end -= file.write(pool[: min(end, len(pool))])


def write_configs(shapes: Any, family: str, folder: Path) -> None:
    """What `from_single_file(config=…)` wants, tokenizers included."""
    from civman.diffusion.transformers_tokenizer import transformers_tokenizer
    from civman.prompts.tokenizer import END, ZERO

    shapes.write_configs(folder, family)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = PIPELINES[family]
    for name, padding in (("tokenizer", END), ("tokenizer_2", ZERO))[: 2 if family == "sdxl" else 1]:
        transformers_tokenizer(folder, padding)
        (folder / f"clip-{padding}").rename(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))


def lora_shapes(configs: dict[str, dict[str, Any]], rank: int = 16) -> dict[str, tuple[int, ...]]:
    """Every attention and feed-forward matrix of the UNet, in kohya's names."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**configs["unet"])
    found: dict[str, tuple[int, ...]] = {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and ".transformer_blocks." in name:
            key = f"lora_unet_{name.replace('.', '_')}"
            found[f"{key}.lora_down.weight"] = (rank, module.in_features)
            found[f"{key}.lora_up.weight"] = (module.out_features, rank)
    return found


# -- what is measured, each in a process of its own ------------------------------------------------------------------


def plain_pipeline(family: str, folder: Path, dtype: Any) -> Any:
    """The script that everybody writes."""
    import diffusers

    pipeline = getattr(diffusers, PIPELINES[family]).from_single_file(
        str(folder / "base.safetensors"), config=str(folder / "config"), torch_dtype=dtype, local_files_only=True
    )
    for name in LORAS:
        pipeline.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters(list(LORAS), [0.7, 0.5])
    pipeline.fuse_lora(adapter_names=list(LORAS))
    return pipeline


def load_plain(family: str, folder: Path) -> dict[str, float]:
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401  # imports are not measured

    begun = clocks()
    pipeline = plain_pipeline(family, folder, torch.float16)
    return since(begun) | called(pipeline.unet)


def load_civman(_family: str, folder: Path) -> dict[str, float]:
    return _load_civman(folder, sparing=False)


def load_sparing(_family: str, folder: Path) -> dict[str, float]:
    return _load_civman(folder, sparing=True)


def _load_civman(folder: Path, *, sparing: bool) -> dict[str, float]:
    import torch

    from civman.diffusion import layer_streaming, loader, merge_adapters, model_classes

    model_classes.construct("unet", {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",),
                               "up_block_types": ("UpBlock2D",)})  # fmt: skip  # imports are not measured
    model_classes.construct("text_encoder", {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1})
    begun = clocks()
    leaves = layer_streaming.SMALL if sparing else None
    model = loader.load(folder / "base.safetensors", device="cpu", dtype=torch.float16, leaves=leaves)
    later = layer_streaming.stream(model) if sparing else None
    chosen = [
        merge_adapters.Adapter(folder / f"{name}.safetensors", str(scale), scale, scale)
        for name, scale in zip(LORAS, (0.7, 0.5), strict=True)
    ]
    targets = {name: module for name, module in model.components.items() if name != "vae"}
    merge_adapters.apply(targets, model.base_tensor, chosen, done_with=model.forget, later=later)
    return since(begun) | called(model.unet)


def clocks() -> tuple[float, float]:
    """Wall clock, and processor time of this process so far, in the kernel too."""
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> dict[str, float]:
    now = clocks()
    return {"seconds": now[0] - begun[0], "cpu_seconds": now[1] - begun[1]}


def called(unet: Any) -> dict[str, float]:
    """The UNet called once, so that it needed every weight; the peak of resident memory in GB, before and after."""
    import torch

    loaded = peak_gb()
    more = {}
    if unet.config.addition_embed_type == "text_time":
        width = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
        pooled = torch.zeros(1, width, dtype=torch.float16)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
    context = torch.zeros(1, 77, unet.config.cross_attention_dim, dtype=torch.float16)
    start = time.perf_counter()
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8, dtype=torch.float16), torch.tensor(1.0), encoder_hidden_states=context, **more)
    return {"call_seconds": time.perf_counter() - start, "loaded_gb": loaded, "peak_gb": peak_gb()}


def peak_gb() -> float:
    """Most memory that was resident at a time so far, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def start_plain(family: str, folder: Path) -> None:
    import torch

    tell_when_the_unet_is_called()
    dtype = torch.float16 if torch.cuda.is_available() else getattr(torch, os.environ["START_DTYPE"])
    pipeline = plain_pipeline(family, folder, dtype).to("cuda" if torch.cuda.is_available() else "cpu")

    def after_step(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        tell({"at": time.time(), "peak_gb": peak_gb()})
        os._exit(0)
        return values

    pipeline(
        PROMPT, negative_prompt="blurry", width=256, height=256, num_inference_steps=4, callback_on_step_end=after_step
    )


def start_civman(_family: str, folder: Path) -> None:
    _start_civman(folder, sparing=False)


def start_sparing(_family: str, folder: Path) -> None:
    _start_civman(folder, sparing=True)


def _start_civman(folder: Path, *, sparing: bool) -> None:
    from civman.domain.events import Event, Step
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.recipe import LoraRequest, RenderRequest
    from civman.library import Library

    tell_when_the_unet_is_called()

    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            tell({"at": time.time(), "peak_gb": peak_gb()})
            os._exit(0)

    loras = tuple(
        LoraRequest(str(folder / f"{name}.safetensors"), scale) for name, scale in zip(LORAS, (0.7, 0.5), strict=True)
    )
    request = RenderRequest(
        str(folder / "base.safetensors"), PROMPT, "blurry", loras, sampler="Euler", width=256, height=256, steps=4,
        precision=os.environ["START_DTYPE"],
    )  # fmt: skip
    with Library.open(folder / "library", offline=True) as library:
        library.render(library.plan(request), machine=Machine(low_vram=sparing), on_event=on_event)


def tell_when_the_unet_is_called() -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook

    def before(module: Any, _arguments: Any) -> None:
        if type(module).__name__ == "UNet2DConditionModel":
            hook.remove()
            tell({"called_at": time.time()})

    hook = register_module_forward_pre_hook(before)


def tell(values: dict[str, float]) -> None:
    print("RESULT " + json.dumps(values), flush=True)


MEASURED = {
    "load plain": load_plain,
    "load civman": load_civman,
    "load sparing": load_sparing,
    "start plain": start_plain,
    "start civman": start_civman,
    "start sparing": start_sparing,
}


# -- the run ---------------------------------------------------------------------------------------------------------


def measured(what: str, family: str, folder: Path, dtype: str) -> dict[str, float]:
    """One process; the time from its start to its first step for `start`."""
    for path in folder.glob("*.safetensors"):  # into the page cache
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.time()
    done = subprocess.run(
        [sys.executable, __file__, "--one", what, "--families", family, "--work", str(folder)],
        check=False, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "START_DTYPE": dtype},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{what} {family} gave nothing:\n{done.stderr[-3000:]}")
    values: dict[str, float] = {}
    for line in lines:
        values |= json.loads(line.removeprefix("RESULT "))
    if "at" in values:
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"called": values["called_at"] - begun, "seconds": values["at"] - begun, "cpu_seconds": cpu,
                "peak_gb": values["peak_gb"]}  # fmt: skip
    return values


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", nargs="+", choices=KINDS, default=["sdxl", "sd1"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/tmp/civman-render-load"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", choices=MEASURED)
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="of the start, on a CPU")
    parser.add_argument("--measure", nargs="+", choices=MEASURED, default=list(MEASURED))
    options = parser.parse_args()
    if options.one:
        found = MEASURED[options.one](options.families[0], options.work)
        if found:
            tell(found)
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores; medians of {options.rounds}")
    for family in options.families:
        folder = options.work / f"{family}{'-tiny' if options.tiny else ''}"
        subprocess.run(
            [sys.executable, "-c", _MAKE, str(ROOT / "benchmarks"), family, str(folder), str(int(options.tiny))],
            check=True,
        )
        prove(folder)
        found: dict[str, list[dict[str, float]]] = {what: [] for what in options.measure}
        for _ in range(options.rounds):
            for what in options.measure:
                found[what].append(measured(what, family, folder, options.dtype))
        report(family, found)


_MAKE = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import render_load
render_load.make_files(sys.argv[2], pathlib.Path(sys.argv[3]), tiny=sys.argv[4] == "1")
"""
"""In a process of its own, so that this one stays small."""


def prove(folder: Path) -> None:
    """The library takes the files in, hashing them once, as a download would have."""
    from civman.library import Library

    with Library.open(folder / "library", offline=True) as library:
        library.files.import_files(sorted(folder.glob("*.safetensors")))


def report(family: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and civman's share of the plain script's."""

    def median(what: str, key: str) -> float:
        return statistics.median(each[key] for each in found[what])

    rows = (
        ("load", "seconds", "s"),
        ("load", "cpu_seconds", "s of processor time"),
        ("load", "call_seconds", "s more to call the UNet once, 64 px"),
        ("load", "loaded_gb", "GB at the peak of loading"),
        ("load", "peak_gb", "GB at the peak, the UNet called"),
        ("start", "called", "s until the UNet is called"),
        ("start", "seconds", "s until the first step is done"),
        ("start", "cpu_seconds", "s of processor time until then"),
        ("start", "peak_gb", "GB at the peak until then"),
    )
    print(f"{family:<6} {'plain':>8} {'civman':>8} {'share':>7} {'sparing':>8} {'share':>7}")
    for what, key, unit in rows:
        if f"{what} plain" not in found:
            continue
        plain = median(f"{what} plain", key)
        line = f"{what:<6} {plain:8.2f}"
        for whose in ("civman", "sparing"):
            ours = median(f"{what} {whose}", key) if f"{what} {whose}" in found else math.nan
            line += f" {ours:8.2f} {ours / plain:7.2f}"
        print(f"{line}   {unit}")


if __name__ == "__main__":
    main()
