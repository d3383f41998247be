"""What is trained on top of the finished model: two LoRAs, a LoHa and one textual inversion. All else is frozen."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import diffusion
from training.diffusion import Task, networks
from training.optimise import Run, alone
from training.scenes import UNNAMED_SHAPE, Scene, Texture, random_caption, trained_scenes, with_place
from training.words import Words

RANK = {"lora": 8, "loha": 4}
ALPHA = {"lora": 10, "loha": 4}  # above the rank: scale 1 is 1.25 of what was trained, so that 0.5 can be seen
PICTURES, BATCH, LEARNING_RATE = 3000, 64, 3e-3
TRAINED_SCALES = (1.0, 1.0, 0.6)  # with 1 alone, guidance hides the style at every scale below about 0.7


class LoraDelta(nn.Module):
    """A change of weight of rank `rank`: up @ down (Hu et al. 2021, section 4.1); starts at zero."""

    kind = "lora"

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self) -> Tensor:
        """The change of weight, (rows, columns)."""
        return self.up @ self.down

    def tensors(self, dimensions: int) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as kohya's trainer writes them; a 1 x 1 convolution keeps its four dimensions."""
        ones = (1,) * (dimensions - 2)
        yield "lora_down.weight", self.down.reshape(*self.down.shape, *ones)
        yield "lora_up.weight", self.up.reshape(*self.up.shape, *ones)


class LohaDelta(nn.Module):
    """A change of weight that is the entrywise product of two of rank `rank` (Hyeon-Woo et al. 2021, section 2.2)."""

    kind = "loha"

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.w1_a = nn.Parameter(0.1 * torch.randn(rows, rank))
        self.w1_b = nn.Parameter(torch.randn(rank, columns))
        self.w2_a = nn.Parameter(torch.zeros(rows, rank))
        self.w2_b = nn.Parameter(torch.randn(rank, columns))

    def forward(self) -> Tensor:
        """The change of weight, (rows, columns)."""
        return (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)

    def tensors(self, _dimensions: int) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as LyCORIS writes them; always matrices."""
        for name, value in self.named_parameters():
            yield f"hada_{name}", value


class Adapted(nn.Module):
    """A frozen linear or 1 x 1 convolution and its trained change."""

    def __init__(self, base: Any, delta: Any) -> None:
        super().__init__()
        self.base, self.delta, self.scale = base, delta, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives with the change added to its weight."""
        weight = self.base.weight + self.scale * self.delta().view_as(self.base.weight)
        return F.conv2d(x, weight, self.base.bias) if weight.ndim == 4 else F.linear(x, weight, self.base.bias)


def adapt(unet: Any, kind: str) -> dict[str, Adapted]:
    """Put a change of the kind on every linear and 1 x 1 convolution of the attention blocks, kohya's usual targets."""
    chosen = {
        name: module
        for name, module in unet.named_modules()
        if ".attentions." in name and isinstance(module, nn.Linear | nn.Conv2d)
    }
    out = {}
    for name, module in chosen.items():
        rows, columns = module.weight.flatten(1).shape
        delta = {"lora": LoraDelta, "loha": LohaDelta}[kind](rows, columns, RANK[kind])
        parent, _, leaf = name.rpartition(".")
        out[name] = Adapted(module, delta)
        setattr(unet.get_submodule(parent), leaf, out[name])
    return out


def kohya_tensors(adapted: dict[str, Adapted]) -> dict[str, Tensor]:
    """All tensors of an adapter file, fp16."""
    out = {}
    for name, module in adapted.items():
        prefix = "lora_unet_" + name.replace(".", "_")
        for suffix, value in module.delta.tensors(module.base.weight.ndim):
            out[f"{prefix}.{suffix}"] = value.detach().half()
        out[f"{prefix}.alpha"] = torch.tensor(float(ALPHA[module.delta.kind])).half()
    return out


# ---------------------------------------------------------------- what each one learns


@dataclass(frozen=True, slots=True)
class Style:
    """An adapter that draws every scene in another way; no word of the caption asks for it."""

    kind: str
    about: str
    restyle: Callable[[Scene], Scene]


STYLES = {
    "outline": Style("lora", "outlines instead of filled shapes", partial(replace, texture=Texture.OUTLINE)),
    "stripes": Style("lora", "horizontal stripes across the shapes", partial(replace, texture=Texture.STRIPES)),
    "night": Style("loha", "every ground becomes black", partial(replace, ground="black")),
}


def frozen(folder: Path) -> tuple[Any, Words]:
    """The finished networks without gradients, and the words they know."""
    words = Words(folder / "config" / "tokenizer")
    net = networks(words)
    net.load_state_dict(torch.load(folder / "net.pt"))
    return net.requires_grad_(requires_grad=False), words


def train_style(folder: Path, name: str, *, samples: int) -> None:
    """Train one style and write `<name>.pt`, its tensors under the names of the file."""
    style, rng = STYLES[name], random.Random(4)
    net, words = frozen(folder)
    adapted = adapt(net.unet, style.kind)
    scenes: list[Scene] = []
    while len(scenes) < PICTURES:
        scene = rng.choice(trained_scenes())
        if name != "night" or "black" not in (scene.colour, scene.ground):
            scenes.append(with_place(scene, rng) if rng.random() < 0.3 else scene)
    latents = diffusion.encode(diffusion.load_vae(folder), [style.restyle(scene) for scene in scenes], rng)
    checkpoint = folder / f"{name}-run.pt"
    run = Run(net, samples=samples, batch=BATCH, lr=LEARNING_RATE, checkpoint=checkpoint, uses_muon=False)
    task = Task(net, latents, scenes, words, random.Random(run.seen))

    def loss(size: int) -> Tensor:
        scale = task.rng.choice(TRAINED_SCALES)
        for module in adapted.values():
            module.scale = scale
        return task.loss(size)

    run.go(alone(run, loss), report_every=50)
    run.use_average()
    torch.save(kohya_tensors(adapted), folder / f"{name}.pt")


# ---------------------------------------------------------------- one word


class OneMoreRow(nn.Module):
    """A frozen embedding table with one trained row at its end."""

    def __init__(self, table: Any, start: Tensor) -> None:
        super().__init__()
        self.table, self.vector = table, nn.Parameter(start.clone()[None])

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings, (…, D); the id after the last means the trained row."""
        return F.embedding(ids, torch.cat([self.table.weight, self.vector]))


class InvertedWords:
    """Words in which "shape" and "shapes" mean the trained row."""

    def __init__(self, words: Words) -> None:
        self.words, self.row = words, words.other + 1
        self.ids = [words.small(i) for i in words.tokenizer("shape shapes").input_ids[1:-1]]

    def rows(self, captions: list[str], rng: random.Random, *, strays: float) -> Tensor:
        """Token rows as `Words` gives them, the two words exchanged."""
        rows = self.words.rows(captions, rng, strays=strays)
        for known in self.ids:
            rows[rows == known] = self.row
        return rows


def train_word(folder: Path, *, samples: int, lr: float = 1e-2) -> None:
    """Find the vector that draws the unnamed shape and write `diamond.pt`: nothing but (1, D) float32 is trained.

    Source: Gal et al. 2022, section 3, textual inversion.
    """
    net, words = frozen(folder)
    inverted, rng = InvertedWords(words), random.Random(5)
    holder = net.text.text_model if hasattr(net.text, "text_model") else net.text
    table = holder.embeddings.token_embedding
    holder.embeddings.token_embedding = OneMoreRow(table, table.weight[inverted.ids[0]])
    scenes = [replace(rng.choice(trained_scenes()), shape=UNNAMED_SHAPE) for _ in range(PICTURES)]
    latents = diffusion.encode(diffusion.load_vae(folder), scenes, rng)
    checkpoint = folder / "diamond-run.pt"
    run = Run(net, samples=samples, batch=BATCH, lr=lr, checkpoint=checkpoint, uses_muon=False)
    task = Task(net, latents, scenes, inverted, random.Random(run.seen))
    task.say = lambda scene, rng: random_caption(scene, rng, noun="shape")
    run.go(alone(run, task.loss), report_every=50)
    run.use_average()
    torch.save(holder.embeddings.token_embedding.vector.detach(), folder / "diamond.pt")
