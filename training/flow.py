"""The second model: a flow-matching transformer in the layout of Stable Diffusion 3.5, and its two CLIP text encoders.

They are trained together, on latents of the first model's autoencoder; the text encoders start from the first model's.
Latents are x = (1 - s) clean + s noise, and the transformer predicts noise - clean.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis".
"""

import random
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from civman.prompts.tokenizer import END, ZERO
from training import layout
from training.adapters import PICTURES as STYLE_PICTURES
from training.adapters import RANK, SCALES, STYLES, Adapted, put_change
from training.diffusion import caption, encode, training_scenes
from training.finished import finished
from training.optimise import Run, alone
from training.scenes import UNNAMED_SHAPE, Scene, sentence, tags
from training.words import POSITIONS, Words

PICTURES, BATCH, LEARNING_RATE = 20_000, 96, 2e-3
SHORT, FULL_SHARE, LAST_SHARE = 16, 0.1, 0.05
"""Most batches see the first `SHORT` of 77 text tokens, which hold a caption without praise; the rest is padding.

All tokens are seen by a share of the batches drawn by chance, and by the last share of the training.
"""
BY_ADAM = ("embedding", "norm", "proj_out", "time_text_embed")
"""Modulations and ends, which take a third of Muon's time and gain nothing from it."""


def transformer() -> Any:
    """An untrained transformer whose blocks start as the identity (Peebles and Xie 2023, adaLN-Zero)."""
    from diffusers import SD3Transformer2DModel

    net: Any = SD3Transformer2DModel(**layout.FLOW)  # type: ignore[no-untyped-call]
    ends = [net.proj_out, net.norm_out.linear]
    for block in net.transformer_blocks:
        ends += [block.norm1.linear, block.norm1_context.linear]
    for linear in ends:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return net


def text_encoder(config: dict[str, Any], words: Words) -> Any:
    """An untrained CLIP text encoder with the trained rows only."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**{**config, "vocab_size": words.other + 1}))


class Texts(nn.Module):
    """Both text encoders, as Stable Diffusion 3 uses them: states before the last layer, and the pooled text."""

    def __init__(self) -> None:
        super().__init__()
        self.words = {"text_encoder": Words(), "text_encoder_2": Words(padding=ZERO)}
        self.text_encoder = text_encoder(layout.FLOW_CLIP_L, self.words["text_encoder"])
        self.text_encoder_2 = text_encoder(layout.FLOW_CLIP_G, self.words["text_encoder_2"])

    def forward(self, captions: list[str], seed: int, *, strays: float, tokens: int) -> tuple[Tensor, Tensor]:
        """The first states (B, tokens, width), and the pooled text (B, width)."""
        states, pooled = [], []
        for name, words in self.words.items():
            encoder = self.get_submodule(name)
            rows = words.rows(captions, random.Random(seed), strays=strays)[:, :tokens]
            answer = encoder(rows, output_hidden_states=True)
            at_end = (rows == words.small(END)).int().argmax(1)  # the last token, if the end token is cut off
            ends = torch.where((rows == words.small(END)).any(1), at_end, tokens - 1)
            states.append(answer.hidden_states[-2])
            pooled.append(encoder.text_projection(answer.last_hidden_state[torch.arange(len(rows)), ends]))
        return torch.cat(states, -1), torch.cat(pooled, -1)

    @torch.no_grad()
    def start_from(self, text: Any) -> None:
        """Copy a finished text encoder of two layers into both; the third layer starts as the identity."""
        old = {name.removeprefix("text_model."): value for name, value in text.state_dict().items()}
        for name, words in self.words.items():
            encoder = self.get_submodule(name)
            new = encoder.state_dict()
            for key in new:
                plain = key.removeprefix("text_model.")
                if plain.endswith("token_embedding.weight"):
                    table = old[plain]
                    new[key] = torch.cat([table[words.used], table[12345][None]])  # a row that all unknown words share
                elif plain in old:
                    new[key] = old[plain]
                elif plain.startswith("encoder.layers.2.") and ("out_proj" in plain or "fc2" in plain):
                    new[key] = torch.zeros_like(new[key])
            encoder.load_state_dict(new)


def short_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of at most `SHORT` tokens, one in ten empty; shapes that must stay unnamed are called "shape"."""
    say = tags if rng.random() < 0.3 else sentence
    noun = "shape" if scene.shape == UNNAMED_SHAPE or rng.random() < 0.03 else None
    return "" if rng.random() < 0.1 else say(scene, noun=noun, says_size=rng.random() < 0.92)


class FlowTask:
    """Prediction of velocities on stored latents: the loss of one batch, drawn anew each time."""

    def __init__(self, net: Any, pool: Tensor, scenes: list[Scene], run: Run) -> None:
        self.net, self.pool, self.scenes, self.run = net, pool, scenes, run
        self.rng = random.Random(run.seen)
        self.strays = 0.12

    def loss(self, batch: int) -> Tensor:
        """Squared error of the velocity at levels from a logit-normal distribution."""
        pick = self.rng.choices(range(len(self.scenes)), k=batch)
        mean, std = self.pool[pick].chunk(2, 1)
        clean = mean + std * torch.randn_like(mean)
        noise = torch.randn_like(clean)
        share = ((torch.arange(batch) + torch.rand(batch)) / batch).clamp(1e-4, 1 - 1e-4)  # stratified
        level = torch.sigmoid(0.4 + 1.2 * torch.special.ndtri(share))
        is_full = self.run.seen > (1 - LAST_SHARE) * self.run.samples or self.rng.random() < FULL_SHARE
        say = caption if is_full else short_caption
        context, pooled = self.net.texts(
            [say(self.scenes[i], self.rng) for i in pick], self.rng.randrange(1 << 30),
            strays=self.strays if is_full else 0, tokens=POSITIONS if is_full else SHORT,
        )  # fmt: skip
        at = level[:, None, None, None]
        guess = self.net.transformer(
            hidden_states=(1 - at) * clean + at * noise, timestep=level * 1000, encoder_hidden_states=context,
            pooled_projections=pooled, return_dict=False,
        )[0]  # fmt: skip
        error: Tensor = (guess - (noise - clean)).square().mean()
        return error


def networks() -> Any:
    """The untrained transformer and text encoders."""
    return nn.ModuleDict({"transformer": transformer(), "texts": Texts()})


def train(folder: Path, *, samples: int, checkpoint: Path) -> None:
    """Train on latents of the autoencoder of `checkpoint`, and write `flow.pt`, the averaged weights."""
    first, rng = finished(checkpoint), random.Random(15)
    net, scenes = networks(), training_scenes(PICTURES, rng)
    net.texts.start_from(first.text)
    run = Run(net, samples=samples, batch=BATCH, lr=LEARNING_RATE, checkpoint=folder / "flow-run.pt", by_adam=BY_ADAM)
    torch.manual_seed(run.seen)
    run.go(alone(run, FlowTask(net, encode(first.vae, scenes, rng), scenes, run).loss), keep_s=60)
    run.use_average()
    torch.save(net.state_dict(), folder / "flow.pt")


STYLED = re.compile(r"transformer_blocks\.\d+\.(attn\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))$")
"""The layers that a style changes: those of the picture's tokens, not of the text's."""


def train_style(folder: Path, name: str, *, samples: int, checkpoint: Path) -> None:
    """Train one of the first model's styles on `flow.pt`, and write `flow-<name>.pt` under the names of its file."""
    style, rng, first = STYLES[name], random.Random(16), finished(checkpoint)
    net = networks()
    net.load_state_dict(torch.load(folder / "flow.pt"))
    net.requires_grad_(requires_grad=False)
    places = [place for place, _ in net.transformer.named_modules() if STYLED.match(place)]
    adapted = {place: put_change(net.transformer, place, "lora", RANK["lora"]) for place in places}
    scenes = [scene for scene in training_scenes(STYLE_PICTURES, rng) if scene.shape != UNNAMED_SHAPE]
    full = encode(first.vae, [style.restyle(scene) for scene in scenes], rng)
    pools = [(scale, full) for scale in SCALES]
    if style.weaker:
        pools[-1] = (0.5, encode(first.vae, [style.weaker(scene) for scene in scenes], rng))
    run = Run(net, samples=samples, batch=64, lr=3e-3, checkpoint=folder / f"flow-{name}-run.pt", uses_muon=False)
    task = FlowTask(net, full, scenes, run)

    def loss(size: int) -> Tensor:
        scale, task.pool = task.rng.choice(pools)
        for module in adapted.values():
            module.scale = scale
        return task.loss(size)

    run.go(alone(run, loss), report_every=50, keep_s=60)
    run.use_average()
    torch.save(peft_tensors(adapted, style.strength), folder / f"flow-{name}.pt")


def peft_tensors(adapted: dict[str, Adapted], strength: float) -> dict[str, Tensor]:
    """An adapter's tensors as diffusers' trainers write them, fp16; scale 1 is `strength` times what was trained."""
    out = {}
    for place, module in adapted.items():
        out[f"transformer.{place}.lora_A.weight"] = module.delta.down.detach().half()
        out[f"transformer.{place}.lora_B.weight"] = (strength * module.delta.up.detach()).half()
    return out
