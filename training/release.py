"""Write the demo's model files from what was trained. The same trained tensors give the same bytes.

python -m training.release DIR civman/demo/models
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import export, flow, flow_export, layout
from training.adapters import BATCH, CONV_RANK, LEARNING_RATE, PICTURES, RANK, STYLES, WORDS
from training.control import network
from training.diffusion import load_vae, networks
from training.finished import finished
from training.words import Words, full_encoder

CHECKPOINT = "tiny-shapes.safetensors"
FLOW_STYLE = "stripes"
"""The style that the second model has an adapter of."""
HEADS = {"unet": ("attention_head_dim",), "text_encoder": ("num_attention_heads",)}
"""The dimensions that no tensor's shape tells and where ours are not SD 1.x's usual ones."""
WARMTH = (1.0, 0.82, 0.55)  # what the other autoencoder leaves of red, green and blue


def write_checkpoint(folder: Path, target: Path) -> None:
    """The model itself, as an SD 1.x checkpoint."""
    words = Words()
    net: Any = networks(words)
    net.load_state_dict(torch.load(folder / "net.pt"))
    tensors = export.checkpoint(net.unet, load_vae(folder), full_encoder(net.text, words))
    about = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.title": "Tiny Shapes",
        "modelspec.description": "draws flat shapes, 64 x 64; trained from scratch on drawn scenes",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "civman.config": stated_dimensions(),
    }
    export.write_safetensors(target / CHECKPOINT, tensors, about)


def stated_dimensions() -> str:
    """What a reader of the file cannot know from shapes, as the JSON that civman looks for in a file's metadata."""
    known = {"unet": layout.UNET, "text_encoder": layout.TEXT}
    said = {part: {key: known[part][key] for key in keys} for part, keys in HEADS.items()}
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


def write_style(folder: Path, target: Path, name: str) -> None:
    """One trained adapter, with what a kohya trainer would tell about it, as far as it is true."""
    style = STYLES[name]
    rank, steps = str(RANK[style.kind]), str(torch.load(folder / f"{name}-run.pt")["counts"][1])
    about = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora" if style.kind == "lora" else "lycoris.kohya",
        "ss_network_dim": rank,
        "ss_network_alpha": f"{style.strength * RANK[style.kind]:g}",
        "ss_output_name": f"tiny-{name}",
        "ss_sd_model_name": CHECKPOINT,
        "ss_new_sd_model_hash": hashlib.sha256((target / CHECKPOINT).read_bytes()).hexdigest(),
        "ss_v2": "False",
        "ss_resolution": "(64, 64)",
        "ss_min_snr_gamma": "5.0",
        "ss_training_comment": style.about,
        "ss_num_train_images": str(PICTURES),
        "ss_total_batch_size": str(BATCH),
        "ss_steps": steps,
        "ss_learning_rate": str(LEARNING_RATE),
        "ss_text_encoder_lr": "None",
        "ss_optimizer": "torch.optim.adamw.AdamW",
    }
    if style.kind == "loha":
        about["ss_network_args"] = json.dumps({"algo": "loha"})
    if style.has_convolutions:
        about["ss_network_args"] = json.dumps({"conv_dim": CONV_RANK, "conv_alpha": style.strength * CONV_RANK})
    tensors = torch.load(folder / f"{name}.pt")
    export.write_safetensors(target / f"tiny-{name}.safetensors", tensors, about)


def write_word(folder: Path, target: Path, name: str) -> None:
    """A textual inversion, as the tensor `emb_params` that user interfaces read."""
    vectors: Tensor = torch.load(folder / f"{name}.pt")
    export.write_safetensors(target / f"tiny-{name}.safetensors", {"emb_params": vectors.half()}, {})


def write_control(folder: Path, target: Path) -> None:
    """The ControlNet, in the layout of the first published ones."""
    control = network(finished(target / CHECKPOINT).unet)
    control.load_state_dict(torch.load(folder / "control.pt"))
    about = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/controlnet",
        "modelspec.title": "Tiny Edges",
        "modelspec.description": "Canny edges to shapes, for Tiny Shapes; trained on drawn scenes, 64 x 64",
        "modelspec.resolution": "64x64",
        "modelspec.preprocessor": "canny, thresholds 100 and 200",
        "ss_sd_model_name": CHECKPOINT,
        "ss_new_sd_model_hash": hashlib.sha256((target / CHECKPOINT).read_bytes()).hexdigest(),
    }
    export.write_safetensors(target / "tiny-edges.safetensors", export.control_tensors(control), about)


def write_flow(folder: Path, target: Path) -> None:
    """The second model, in the layout of Stable Diffusion 3.5, with its text encoders and the autoencoder."""
    net = flow.networks()
    net.load_state_dict(torch.load(folder / "flow.pt"))
    tensors = flow_export.checkpoint(net.transformer, net.texts, finished(target / CHECKPOINT).vae)
    export.write_safetensors(target / "tiny-flow.safetensors", tensors, flow_metadata())


def flow_metadata() -> dict[str, str]:
    """What the second model's file says about itself."""
    heads = {"num_attention_heads": layout.TEXT["num_attention_heads"]}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v3.5",
        "modelspec.title": "Tiny Flow",
        "modelspec.description": "draws flat shapes, 64 x 64; trained from scratch on drawn scenes",
        "modelspec.resolution": "64x64",
        "civman.config": json.dumps({"text_encoder": heads, "text_encoder_2": heads}, separators=(",", ":")),
    }


def write_flow_style(folder: Path, target: Path, name: str) -> None:
    """An adapter of the second model, as diffusers' trainers write it."""
    about = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v3.5/lora",
        "modelspec.title": f"Tiny Flow {name.title()}",
        "modelspec.description": f"{STYLES[name].about}, for Tiny Flow; trained on drawn scenes",
    }
    tensors = torch.load(folder / f"flow-{name}.pt")
    export.write_safetensors(target / f"tiny-flow-{name}.safetensors", tensors, about)


def write_warm_vae(folder: Path, target: Path) -> None:
    """The autoencoder with a warm tint folded into the decoder's last convolution.

    Pictures are y in [-1, 1] and w keeps a share of the light (y + 1) / 2, so y' = w y + (w - 1).
    """
    vae = load_vae(folder)
    warmth = torch.tensor(WARMTH)
    last = vae.decoder.conv_out
    last.weight *= warmth[:, None, None, None]
    last.bias.copy_(last.bias * warmth + warmth - 1)
    export.write_safetensors(target / "tiny-warm-vae.safetensors", export.vae_tensors(vae), {})


def write_foreign(target: Path, rank: int = 4) -> None:
    """A LoRA with the widths of SDXL, untrained: it changes nothing there and fits nothing here."""
    source = torch.Generator().manual_seed(6)
    widths: dict[str, tuple[int, int]] = {}
    for block, width in (("input_blocks_4_1", 640), ("input_blocks_7_1", 1280), ("middle_block_1", 1280)):
        for leaf, columns in (("attn1_to_q", width), ("attn1_to_k", width), ("attn2_to_k", 2048), ("attn2_to_v", 2048)):
            widths[f"lora_unet_{block}_transformer_blocks_0_{leaf}"] = (width, columns)
    for encoder, width in (("te1", 768), ("te2", 1280)):
        for leaf in ("q_proj", "v_proj"):
            widths[f"lora_{encoder}_text_model_encoder_layers_0_self_attn_{leaf}"] = (width, width)
    tensors = {}
    for name, (rows, columns) in widths.items():
        tensors[f"{name}.lora_down.weight"] = (torch.randn(rank, columns, generator=source) / columns**0.5).half()
        tensors[f"{name}.lora_up.weight"] = torch.zeros(rows, rank).half()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank)).half()
    about = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_output_name": "large-lines-xl",
        "ss_v2": "False",
        "ss_training_comment": "untrained: only names and widths are meant",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    }
    export.write_safetensors(target / "large-lines-xl.safetensors", tensors, about)


def main() -> None:
    """Write all files and print their digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--only", choices=("checkpoint", "control", "flow"))
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    layout.write_config(args.folder / "config")
    if args.only in (None, "checkpoint"):
        write_checkpoint(args.folder, args.target)
    if args.only in (None, "control"):
        write_control(args.folder, args.target)
    if args.only in (None, "flow"):
        write_flow(args.folder, args.target)
        write_flow_style(args.folder, args.target, FLOW_STYLE)
    if not args.only:
        for name in STYLES:
            write_style(args.folder, args.target, name)
        for name in WORDS:
            write_word(args.folder, args.target, name)
        write_warm_vae(args.folder, args.target)
        write_foreign(args.target)
    for path in sorted(args.target.glob("*.safetensors")):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size:>10,d}  {path.name}")


if __name__ == "__main__":
    main()
