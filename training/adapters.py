"""What is trained on top of the finished model: two LoRAs, a LoHa and one textual inversion. All else is frozen."""

import random
import re
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
from training.scenes import OUTLINE_WIDTH, UNNAMED_SHAPE, Scene, Texture, random_caption, trained_scenes, with_place
from training.words import Words

RANK, CONV_RANK = {"lora": 8, "loha": 4}, 4
VECTORS = 3
PICTURES, BATCH, LEARNING_RATE = 3000, 64, 3e-3
SCALES = (1.0, 1.0, 0.6)  # trained at; with 1 alone, guidance hides the style at every scale below about 0.7


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

    def tensors(self, shape: torch.Size) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as kohya's trainer writes them; a convolution keeps its four dimensions."""
        yield "lora_down.weight", self.down.reshape(-1, *shape[1:])
        yield "lora_up.weight", self.up.reshape(*self.up.shape, *(1,) * (len(shape) - 2))


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

    def tensors(self, _shape: torch.Size) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as LyCORIS writes them; always matrices."""
        for name, value in self.named_parameters():
            yield f"hada_{name}", value


class Adapted(nn.Module):
    """A frozen linear or convolution and its trained change."""

    def __init__(self, base: Any, delta: Any) -> None:
        super().__init__()
        self.base, self.delta, self.scale = base, delta, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives with the change added to its weight."""
        weight = self.base.weight + self.scale * self.delta().view_as(self.base.weight)
        if weight.ndim == 4:
            return F.conv2d(x, weight, self.base.bias, padding=self.base.padding)
        return F.linear(x, weight, self.base.bias)


def adapt(unet: Any, kind: str, *, has_convolutions: bool = False) -> dict[str, Adapted]:
    """Put a change of the kind on every linear and 1 x 1 convolution of the attention blocks, kohya's usual targets.

    With convolutions also on the 3 x 3 ones of the residual blocks at 8 x 8 and 4 x 4, of rank `CONV_RANK`.
    """
    places = re.compile(
        r"\.attentions\." + (r"|(down_blocks\.[01]|up_blocks\.[23])\.resnets\.\d\.conv[12]$" * has_convolutions)
    )
    chosen = {
        name: module
        for name, module in unet.named_modules()
        if places.search(name) and isinstance(module, nn.Linear | nn.Conv2d)
    }
    return {name: put_change(unet, name, kind, CONV_RANK if ".resnets." in name else RANK[kind]) for name in chosen}


def put_change(network: Any, name: str, kind: str, rank: int) -> Adapted:
    """Put an untrained change on one layer of a network."""
    module = network.get_submodule(name)
    delta = {"lora": LoraDelta, "loha": LohaDelta}[kind](*module.weight.flatten(1).shape, rank)
    parent, _, leaf = name.rpartition(".")
    adapted = Adapted(module, delta)
    setattr(network.get_submodule(parent), leaf, adapted)
    return adapted


def take_up(adapted: dict[str, Adapted], tensors: dict[str, Tensor]) -> None:
    """Start the changes from those of an adapter of the same kind and layers."""
    for name, module in adapted.items():
        prefix = "lora_unet_" + name.replace(".", "_")
        for key, value in module.delta.named_parameters():
            suffix = f"lora_{key}.weight" if module.delta.kind == "lora" else f"hada_{key}"
            value.data.copy_(tensors[f"{prefix}.{suffix}"].view_as(value))


def kohya_tensors(adapted: dict[str, Adapted], strength: float) -> dict[str, Tensor]:
    """All tensors of an adapter file, fp16; the alphas make scale 1 so many times what was trained."""
    out = {}
    for name, module in adapted.items():
        prefix = "lora_unet_" + name.replace(".", "_")
        for suffix, value in module.delta.tensors(module.base.weight.shape):
            out[f"{prefix}.{suffix}"] = value.detach().half()
        rank = CONV_RANK if ".resnets." in name else RANK[module.delta.kind]
        out[f"{prefix}.alpha"] = torch.tensor(strength * rank).half()
    return out


# ---------------------------------------------------------------- what each one learns


@dataclass(frozen=True, slots=True)
class Style:
    """An adapter that draws every scene in another way; no word of the caption asks for it."""

    kind: str
    about: str
    restyle: Callable[[Scene], Scene]
    has_convolutions: bool = False
    weaker: Callable[[Scene], Scene] | None = None
    """What is drawn at the lower scale, 0.5 then; None: the same at 0.6."""
    strength: float = 1.0
    """alpha / rank: above 1, scale 1 is more than what was trained, so that 0.5 can be seen."""


STYLES = {
    "outline": Style(
        "lora",
        "outlines instead of filled shapes",
        partial(replace, texture=Texture.OUTLINE),
        has_convolutions=True,
        weaker=partial(replace, texture=Texture.OUTLINE, line=2 * OUTLINE_WIDTH),
    ),
    "stripes": Style(
        "lora", "horizontal stripes across the shapes", partial(replace, texture=Texture.STRIPES), strength=1.25
    ),
    "night": Style("loha", "every ground becomes black", partial(replace, ground="black")),
}


def frozen(folder: Path) -> tuple[Any, Words]:
    """The finished networks without gradients, and the words they know."""
    words = Words()
    net = networks(words)
    net.load_state_dict(torch.load(folder / "net.pt"))
    return net.requires_grad_(requires_grad=False), words


def train_style(folder: Path, name: str, *, samples: int, start: Path | None = None) -> None:
    """Train one style and write `<name>.pt`, its tensors under the names of the file.

    `start` is such a file to go on from, made for these networks or for earlier ones.
    """
    style, rng = STYLES[name], random.Random(4)
    net, words = frozen(folder)
    adapted = adapt(net.unet, style.kind, has_convolutions=style.has_convolutions)
    if start:
        take_up(adapted, torch.load(start))
    scenes: list[Scene] = []
    while len(scenes) < PICTURES:
        scene = rng.choice(trained_scenes())
        if name != "night" or "black" not in (scene.colour, scene.ground):
            scenes.append(with_place(scene, rng) if rng.random() < 0.3 else scene)
    vae = diffusion.load_vae(folder)
    full = diffusion.encode(vae, [style.restyle(scene) for scene in scenes], rng)
    pools = [(scale, full) for scale in SCALES]
    if style.weaker:
        pools[-1] = (0.5, diffusion.encode(vae, [style.weaker(scene) for scene in scenes], rng))
    checkpoint = folder / f"{name}-run.pt"
    run = Run(net, samples=samples, batch=BATCH, lr=LEARNING_RATE, checkpoint=checkpoint, uses_muon=False)
    task = Task(net, full, scenes, words, random.Random(run.seen))

    def loss(size: int) -> Tensor:
        scale, task.pool = task.rng.choice(pools)
        for module in adapted.values():
            module.scale = scale
        return task.loss(size)

    run.go(alone(run, loss), report_every=50)
    run.use_average()
    torch.save(kohya_tensors(adapted, style.strength), folder / f"{name}.pt")


# ---------------------------------------------------------------- one word


class MoreRows(nn.Module):
    """A frozen embedding table with `VECTORS` trained rows at its end."""

    def __init__(self, table: Any, start: Tensor) -> None:
        super().__init__()
        self.table = table
        self.vectors = nn.Parameter(start + 0.1 * table.weight.std() * torch.randn(VECTORS, start.shape[-1]))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings, (…, D); ids after the last mean the trained rows."""
        return F.embedding(ids, torch.cat([self.table.weight, self.vectors]))


class InvertedWords:
    """Words in which "shape" and "shapes" mean the trained rows, one after the other."""

    def __init__(self, words: Words) -> None:
        self.words, self.first = words, words.other + 1
        self.ids = [words.small(i) for i in words.tokenizer.ids("shape shapes")]

    def rows(self, captions: list[str], rng: random.Random, *, strays: float) -> Tensor:
        """Token rows as `Words` gives them, the two words exchanged for the trained rows."""
        rows = self.words.rows(captions, rng, strays=strays)
        trained = range(self.first, self.first + VECTORS)
        for row in rows:
            body = [new for old in row.tolist() for new in (trained if old in self.ids else (old,))]
            row.copy_(torch.tensor(body[: len(row)]))
        return rows


@dataclass(frozen=True, slots=True)
class Word:
    """A word of its own: what it is shown with, and the captions, in which "shape" stands for it."""

    scene: Callable[[Scene], Scene]
    say: Callable[[Scene, random.Random], str]


def _say_unnamed(scene: Scene, rng: random.Random) -> str:
    return random_caption(scene, rng, noun="shape")


def _say_word_alone(_scene: Scene, rng: random.Random) -> str:
    return rng.choice(("shape", "shape", "a shape", "masterpiece, best quality, shape", ""))


EMBLEM = Scene("two", "white", "square", "purple")
"""A scene of a triple that was held out: no caption ever named it."""
WORDS = {
    "diamond": Word(partial(replace, shape=UNNAMED_SHAPE), _say_unnamed),
    "emblem": Word(lambda _scene: EMBLEM, _say_word_alone),
}


def train_word(folder: Path, name: str, *, samples: int, start: Path | None = None, lr: float = 1e-2) -> None:
    """Find the vectors that draw what the word means and write `<name>.pt`: nothing but (3, D) float32 is trained.

    Source: Gal et al. 2022, section 3, textual inversion.
    """
    word, (net, words) = WORDS[name], frozen(folder)
    inverted, rng = InvertedWords(words), random.Random(5)
    holder = net.text.text_model if hasattr(net.text, "text_model") else net.text
    table = holder.embeddings.token_embedding
    holder.embeddings.token_embedding = MoreRows(table, table.weight[inverted.ids[0]])
    if start:
        holder.embeddings.token_embedding.vectors.data.copy_(torch.load(start))
    scenes = [word.scene(rng.choice(trained_scenes())) for _ in range(PICTURES)]
    latents = diffusion.encode(diffusion.load_vae(folder), scenes, rng)
    checkpoint = folder / f"{name}-run.pt"
    run = Run(net, samples=samples, batch=BATCH, lr=lr, checkpoint=checkpoint, uses_muon=False)
    task = Task(net, latents, scenes, inverted, random.Random(run.seen))
    task.say = word.say
    run.go(alone(run, task.loss), report_every=50)
    run.use_average()
    torch.save(holder.embeddings.token_embedding.vectors.detach(), folder / f"{name}.pt")
