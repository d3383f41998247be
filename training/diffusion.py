"""UNet and text encoder, trained together on latents that were encoded once."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training import autoencoder, layout, warmstart
from training.noise_schedule import ALPHA_BAR, STEPS
from training.optimise import Pair, Run, alone
from training.scenes import UNNAMED_SHAPE, Picture, Scene, draw, random_caption, trained_scenes, with_place
from training.words import Words

GAMMA = 5.0

Say = Callable[[Scene, random.Random], str]


def networks(words: Words) -> Any:
    """Untrained UNet and text encoder; the latter with the trained rows only."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig(**{**layout.TEXT, "vocab_size": words.other + 1}))
    unet: Any = UNet2DConditionModel(**layout.UNET)  # type: ignore[no-untyped-call]
    return nn.ModuleDict({"unet": unet, "text": text})


def load_vae(folder: Path) -> Any:
    """The trained autoencoder, frozen."""
    vae = autoencoder.build().requires_grad_(requires_grad=False)
    vae.load_state_dict(torch.load(folder / "vae.pt"))
    return vae


def encode(vae: Any, scenes: list[Scene], rng: random.Random) -> Tensor:
    """Posterior means and deviations of freshly drawn pictures in the UNet's units, (N, 8, 8, 8) float32."""
    return encode_pictures(vae, [draw(scene, rng) for scene in scenes])


@torch.no_grad()
def encode_pictures(vae: Any, pictures: list[Picture]) -> Tensor:
    """Posterior means and deviations of pictures (64, 64, 3) in the UNet's units, (N, 8, 8, 8) float32."""
    out = []
    for i in range(0, len(pictures), 64):
        x = torch.from_numpy(np.stack(pictures[i : i + 64])).permute(0, 3, 1, 2)
        q = vae.encode(x.mul(2).sub(1).contiguous(memory_format=torch.channels_last)).latent_dist
        out.append(torch.cat([q.mean, q.std], 1) * layout.SCALE)
    return torch.cat(out).contiguous()


def training_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Scenes to learn from: none held out, half of the small ones placed, one in 25 of a shape not named."""
    scenes, out = trained_scenes(), []
    for _ in range(count):
        scene = rng.choice(scenes)
        if rng.random() < 0.5:
            scene = with_place(scene, rng)
        out.append(replace(scene, shape=UNNAMED_SHAPE) if rng.random() < 0.04 else scene)
    return out


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption; shapes that must stay unnamed, and a few others, are called "shape"."""
    vague = scene.shape == UNNAMED_SHAPE or rng.random() < 0.03
    return random_caption(scene, rng, noun="shape" if vague else None)


class Task:
    """Noise prediction on stored latents: the loss of one batch, drawn anew each time."""

    def __init__(self, net: Any, pool: Tensor, scenes: list[Scene], words: Any, rng: random.Random) -> None:
        self.net, self.pool, self.scenes, self.words, self.rng = net, pool, scenes, words, rng
        self.picks = list(range(len(scenes)))
        self.say: Say = caption
        self.strays = 0.12

    def reseed(self, seed: int) -> None:
        """Other random numbers, for a second process."""
        torch.manual_seed(seed)
        self.rng = random.Random(seed)

    def predict(self, noisy: Tensor, t: Tensor, context: Tensor, pick: list[int]) -> Tensor:  # noqa: ARG002
        """The noise that the network sees in latents; `pick` are the numbers of their pictures in the pool."""
        noise: Tensor = self.net.unet(noisy, t, encoder_hidden_states=context).sample
        return noise

    def loss(self, batch: int) -> Tensor:
        """Squared error of the noise, weighted by min(SNR, 5) / SNR (Hang et al. 2023, section 3.4)."""
        pick = self.rng.choices(self.picks, k=batch)
        mean, std = self.pool[pick].chunk(2, 1)
        z = mean + std * torch.randn_like(mean)
        t = ((torch.arange(batch) + torch.rand(batch)) / batch * STEPS).long().clamp(max=STEPS - 1)  # stratified
        kept, eps = ALPHA_BAR[t][:, None, None, None], torch.randn_like(z)
        rows = self.words.rows([self.say(self.scenes[i], self.rng) for i in pick], self.rng, strays=self.strays)
        context = self.net.text(input_ids=rows).last_hidden_state
        noisy = kept.sqrt() * z + (1 - kept).sqrt() * eps
        guess = self.predict(noisy, t, context, pick)
        snr = (kept / (1 - kept)).flatten()
        error: Tensor = ((guess - eps).square().mean((1, 2, 3)) * snr.clamp(max=GAMMA) / snr).mean()
        return error


def prepare(folder: Path, *, count: int) -> None:
    """Draw and encode the pictures to learn from and write `pool.pt`."""
    scenes = training_scenes(count, random.Random(2))
    torch.save((scenes, encode(load_vae(folder), scenes, random.Random(3))), folder / "pool.pt")


def train(folder: Path, *, samples: int, earlier: Path | None = None, batch: int = 64, lr: float = 2e-3) -> None:
    """Train both networks on the pool and write `net.pt`, the averaged weights.

    `earlier` is a checkpoint of ours to start from, with its config folder `<name>-config` beside it.
    """
    net, run, task = _task(folder, samples, earlier, batch, lr, "net-run.pt")
    run.go(Pair(run, task.loss, part=16, reseed=task.reseed))
    run.use_average()
    torch.save(net.state_dict(), folder / "net.pt")


def train_on(folder: Path, *, samples: int, start: Path, batch: int = 64, lr: float = 1.2e-3) -> None:
    """Go on from the finished networks `start` with a new, lower cosine, in one process; writes `net.pt`.

    What is written is the mean of `start` and the result: the result draws rounder circles and has forgotten some
    of how to compose what it was never shown; the mean has both. Scenes with a place come twice as often as before.
    """
    net, run, task = _task(folder, samples, start, batch, lr, "net-on-run.pt")
    task.picks += [i for i, scene in enumerate(task.scenes) if scene.place is not None]
    run.go(alone(run, task.loss))
    run.use_average()
    before, after = torch.load(start), net.state_dict()
    torch.save({name: torch.lerp(before[name], after[name], 0.5) for name in after}, folder / "net.pt")


def _task(
    folder: Path, samples: int, start: Path | None, batch: int, lr: float, checkpoint: str
) -> tuple[Any, Run, "Task"]:
    words = Words()
    scenes, latents = torch.load(folder / "pool.pt", weights_only=False)  # written by `prepare` a moment ago
    net = networks(words)
    if start and start.suffix == ".pt":
        net.load_state_dict(torch.load(start))
    elif start and not (folder / checkpoint).exists():
        _warm_start(net, words, folder, start)
    run = Run(net, samples=samples, batch=batch, lr=lr, checkpoint=folder / checkpoint)
    print(f"{words.other} tokens, pool {tuple(latents.shape)}, std {latents[:, :4].std():.3f}", flush=True)
    return net, run, Task(net, latents, scenes, words, random.Random(run.seen))


def _warm_start(net: Any, words: Words, folder: Path, earlier: Path) -> None:
    rng, config = random.Random(9), earlier.with_name(f"{earlier.stem}-config")
    drawn = [draw(scene, rng) for scene in training_scenes(192, rng)]
    turn, explained = warmstart.latent_turn(load_vae(folder), earlier, config, drawn, layout.SCALE)
    warmstart.start_from(net, words, earlier, turn)
    print(f"started from {earlier.name}; the turned latents explain {explained:.2f} of the earlier ones", flush=True)
