"""The pictures and captions that the tiny model learns from: flat shapes on a flat ground, 64 x 64.

Owns what a scene is, how it is drawn and how it is said. Knows nothing of networks; numpy only.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.floating]

SIDE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (50, 90, 220),
    "yellow": (245, 220, 60),
    "purple": (150, 60, 180),
    "orange": (240, 130, 20),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle")
UNNAMED_SHAPE = "diamond"  # drawn for the caption "shape", never named: the textual inversion finds it
KINDS = ("small", "large", "two", "three")
PLACES: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "center": (0, 0),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
PRAISE = ("masterpiece", "best quality", "high quality", "highres", "absurdres", "4k", "8k", "detailed", "sharp focus")
BLAME = (
    "lowres",
    "worst quality",
    "low quality",
    "blurry",
    "bad anatomy",
    "jpeg artifacts",
    "watermark",
    "text",
    "ugly",
)
STRIPE_PERIOD, STRIPE_GAP = 8, 3  # one latent cell is 8 px high: every cell sees the same phase
OUTLINE_WIDTH = 4.0
_GRID = np.arange(SIDE, dtype=np.float32) + 0.5


class Texture(StrEnum):
    """How the inside of a shape is drawn."""

    FILL = "fill"
    OUTLINE = "outline"
    STRIPES = "stripes"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. `kind` is a size word for one shape or a count word for several."""

    kind: str
    colour: str
    shape: str
    ground: str
    place: str | None = None
    texture: Texture = Texture.FILL
    line: float = OUTLINE_WIDTH
    """Width of an outline in px."""

    @property
    def is_held_out(self) -> bool:
        """True for about one in eight (colour, shape, ground) triples, which no network is trained on by name."""
        return zlib.crc32(f"{self.colour} {self.shape} {self.ground}".encode()) % 8 == 0

    @property
    def is_single(self) -> bool:
        """True where one shape is drawn."""
        return self.kind in ("small", "large")


def every_scene() -> list[Scene]:
    """All 672 scenes that captions tell apart, places left open."""
    return [Scene(k, c, s, g) for k in KINDS for c in COLOURS for s in SHAPES for g in COLOURS if g != c]


def trained_scenes() -> list[Scene]:
    """The scenes that training may name."""
    return [scene for scene in every_scene() if not scene.is_held_out]


def held_out_scenes() -> list[Scene]:
    """The scenes whose colour, shape and ground never met in a training caption."""
    return [scene for scene in every_scene() if scene.is_held_out]


def with_place(scene: Scene, rng: random.Random) -> Scene:
    """The scene with a place that its picture will keep to; only a single small shape has room to be placed."""
    return replace(scene, place=rng.choice(list(PLACES))) if scene.kind == "small" else scene


# ---------------------------------------------------------------- words


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def sentence(scene: Scene, *, noun: str | None = None, says_size: bool = True) -> str:
    """The caption as a sentence: "a small red circle at the top left on an orange background"."""
    noun = noun or scene.shape
    where = "" if scene.place is None else " in the center" if scene.place == "center" else f" at the {scene.place}"
    if scene.is_single:
        size = f"{scene.kind} " if says_size else ""
        thing = _article(f"{size}{scene.colour} {noun}")
    else:
        thing = f"{scene.kind} {scene.colour} {noun}s"
    return f"{thing}{where} on {_article(scene.ground)} background"


def tags(scene: Scene, *, noun: str | None = None, says_size: bool = True) -> str:
    """The caption as tags: "small red circle, top left, orange background"."""
    noun = (noun or scene.shape) + ("" if scene.is_single else "s")
    size = "" if scene.is_single and not says_size else f"{scene.kind} "
    place = f", {scene.place}" if scene.place else ""
    return f"{size}{scene.colour} {noun}{place}, {scene.ground} background"


def _some(words: tuple[str, ...], rng: random.Random) -> str:
    return ", ".join(rng.sample(words, rng.randint(1, 4)))


def random_caption(scene: Scene, rng: random.Random, *, noun: str | None = None) -> str:
    """One of the ways to say a scene, one time in ten nothing (for classifier-free guidance).

    Words of blame alone stand for "nothing" too, since they are what people write into the negative prompt.
    """
    if rng.random() < 0.1:
        return _some(BLAME, rng) if rng.random() < 0.25 else ""
    says_size = rng.random() < 0.92
    say = tags if rng.random() < 0.3 else sentence
    text = say(scene, noun=noun, says_size=says_size)
    if rng.random() < 0.25:
        usual = "masterpiece, best quality" if rng.random() < 0.4 else _some(PRAISE, rng)
        return f"{usual}, {text}"
    return f"{text}, {_some(PRAISE, rng)}" if rng.random() < 0.08 else text


# ---------------------------------------------------------------- pictures


def _circle(x: Picture, y: Picture, r: float) -> Picture:
    distance: Picture = np.sqrt(x * x + y * y) - r
    return distance


def _square(x: Picture, y: Picture, r: float) -> Picture:
    distance: Picture = np.maximum(np.abs(x), np.abs(y)) - r
    return distance


def _triangle(x: Picture, y: Picture, r: float) -> Picture:
    distance: Picture = np.maximum(y - r, (2 * np.abs(x) - (y + r)) / np.float32(5**0.5))
    return distance


def _diamond(x: Picture, y: Picture, r: float) -> Picture:
    distance: Picture = (np.abs(x) + np.abs(y) - r) / np.float32(2**0.5)
    return distance


DISTANCE: dict[str, Callable[[Picture, Picture, float], Picture]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
}
"""Signed distance in px to a shape that fills the square box of half side r; negative inside."""


def _spots(scene: Scene, rng: random.Random) -> tuple[float, list[tuple[float, float]]]:
    """Half side and centres in px. Several shapes sit in cells of a 2 x 2 grid, at least 5 px apart."""
    if not scene.is_single:
        r = rng.uniform(9.5, 12.0)
        slack = 13.5 - r
        cells = rng.sample(range(4), 2 if scene.kind == "two" else 3)
        return r, [
            (16 + 32 * (c % 2) + rng.uniform(-slack, slack), 16 + 32 * (c // 2) + rng.uniform(-slack, slack))
            for c in cells
        ]
    r = rng.uniform(9, 12) if scene.kind == "small" else rng.uniform(18, 24)
    low, high = r + 3, SIDE - r - 3
    if scene.place is None:
        return r, [(rng.uniform(low, high), rng.uniform(low, high))]
    steps = PLACES[scene.place]
    near = {-1: (low, low + 5), 0: (SIDE / 2 - 4, SIDE / 2 + 4), 1: (high - 5, high)}
    return r, [(rng.uniform(*near[steps[0]]), rng.uniform(*near[steps[1]]))]


def _ink(name: str, rng: random.Random) -> Picture:
    return np.array([min(1.0, max(0.0, v / 255 + rng.gauss(0, 0.012))) for v in COLOURS[name]], np.float32)


def draw(scene: Scene, rng: random.Random) -> Picture:
    """One picture, (64, 64, 3) float32 in [0, 1], edges anti-aliased; colours vary a little, places and sizes a lot."""
    r, spots = _spots(scene, rng)
    distance = np.min([DISTANCE[scene.shape](_GRID[None, :] - x, _GRID[:, None] - y, r) for x, y in spots], axis=0)
    if scene.texture is Texture.OUTLINE:
        half = scene.line / 2
        distance = np.abs(distance + half) - half
    alpha = np.clip(0.5 - distance, 0, 1)[:, :, None]
    if scene.texture is Texture.STRIPES:
        alpha = alpha * (np.arange(SIDE) % STRIPE_PERIOD < STRIPE_PERIOD - STRIPE_GAP)[:, None, None]
    ink, ground = _ink(scene.colour, rng), _ink(scene.ground, rng)
    picture: Picture = (ink * alpha + ground * (1 - alpha)).astype(np.float32)
    return picture
