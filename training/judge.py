"""Reads a 64 x 64 picture back into words: ground, colour, shape, size or count, place, texture.

Deterministic, numpy only, nothing trained: masks by colour, parts by connection, shapes by overlap with the ideal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.scenes import COLOURS, DISTANCE, SIDE, Picture, Scene, Texture

Mask = NDArray[np.bool_]

STRICT_IOU = 0.75
_PALETTE = np.array(list(COLOURS.values()), np.float32) / 255
_LEAST_CONTRAST = 0.12  # below it a picture is called empty
_LEAST_PART_PX = 20  # smaller specks are not counted as shapes
_LARGE_PX = 29.5  # between the widest small box, 24 px, and the narrowest large one, 36 px
_MOST_STRETCH = 1.45  # a box longer than this is none of our shapes


@dataclass(frozen=True, slots=True)
class Reading:
    """What a picture shows; None where nothing can be said.

    `iou` is the worst overlap of a part with the ideal shape. `hollow` (0 filled, towards 1 empty), `banding`
    (0 even, about 0.75 striped) and `light` (of the ground, 0 black to 1 white) say how strong a style is.
    """

    ground: str
    colour: str | None = None
    shape: str | None = None
    kind: str | None = None
    place: str | None = None
    texture: Texture | None = None
    iou: float = 0.0
    hollow: float = 0.0
    banding: float = 0.0
    light: float = 0.0


@dataclass(frozen=True, slots=True)
class Marks:
    """Which facts of a scene a picture got right. `place` is True where the caption names none."""

    ground: bool
    colour: bool
    shape: bool
    kind: bool
    place: bool

    @property
    def has_core(self) -> bool:
        """Shape, colour and ground."""
        return self.ground and self.colour and self.shape

    @property
    def has_all(self) -> bool:
        """Size or count as well."""
        return self.has_core and self.kind


def mark(scene: Scene, seen: Reading, *, least_iou: float = STRICT_IOU) -> Marks:
    """Compare a reading with the scene that was asked for; a shape counts only with `least_iou`."""
    return Marks(
        ground=seen.ground == scene.ground,
        colour=seen.colour == scene.colour,
        shape=seen.shape == scene.shape and seen.iou >= least_iou,
        kind=seen.kind == scene.kind,
        place=scene.place is None or seen.place == scene.place,
    )


def read(picture: Picture) -> Reading:
    """What a (64, 64, 3) picture in [0, 1] shows."""
    paper = _paper(picture)
    ground, light = _nearest(paper), float(paper.mean())
    if (found := _ink_and_density(picture, paper)) is None:
        return Reading(ground=ground, light=light)
    ink, density = found
    solid = _solid(density)
    parts = [part for part in _parts(solid) if part.sum() >= _LEAST_PART_PX]
    if not parts:
        return Reading(ground=ground, colour=_nearest(ink), light=light)
    shape, iou = _common_shape(parts)
    hollow, banding = _texture(np.clip(density, 0, 1), parts)
    kind, place = _kind_and_place(parts)
    texture = _texture_name(hollow, banding)
    return Reading(ground, _nearest(ink), shape, kind, place, texture, iou, hollow, banding, light)


def overlap(picture: Picture, other: Picture) -> float:
    """How far the shapes in two pictures cover each other, whatever their colours: intersection over union."""
    masks = []
    for each in (picture, other):
        found = _ink_and_density(each, _paper(each))
        masks.append(np.zeros((SIDE, SIDE), bool) if found is None else _solid(found[1]))
    return float((masks[0] & masks[1]).sum() / max((masks[0] | masks[1]).sum(), 1))


# ---------------------------------------------------------------- colours


def _ink_and_density(picture: Picture, paper: Picture) -> tuple[Picture, Picture] | None:
    """The shapes' colour, and how much of it each pixel has (0 paper, 1 ink); None for an empty picture."""
    offset = picture - paper
    far = np.sqrt((offset**2).sum(2))
    peak = float(np.percentile(far, 99))
    if peak < _LEAST_CONTRAST:
        return None
    ink: Picture = np.median(picture[far > 0.6 * peak], axis=0)
    towards = ink - paper
    return ink, offset @ towards / max(float(towards @ towards), 1e-3)


def _nearest(rgb: Picture) -> str:
    return list(COLOURS)[int(((_PALETTE - rgb) ** 2).sum(1).argmin())]


def _paper(picture: Picture) -> Picture:
    """The ground's colour: the median of a border two pixels wide."""
    border = (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:])
    colour: Picture = np.median(np.concatenate([part.reshape(-1, 3) for part in border]), axis=0)
    return colour


# ---------------------------------------------------------------- masks


def _solid(density: Picture) -> Mask:
    """The area of the shapes, stripes and holes filled."""
    return _fill_holes(_close_rows(density > 0.5))


def _close_rows(mask: Mask) -> Mask:
    """Close gaps of up to three rows, the width between two stripes."""
    reach = 4
    padded = np.pad(mask, ((reach, reach), (0, 0)))
    grown = np.any([np.roll(padded, k, axis=0) for k in range(reach)], axis=0)
    closed: Mask = np.all([np.roll(grown, -k, axis=0) for k in range(reach)], axis=0)
    return closed[reach:-reach]


def _spread(seed: NDArray[np.int32], mask: Mask) -> NDArray[np.int32]:
    """Let the largest label of each 4-connected part of the mask fill that part."""
    labels = np.where(mask, seed, 0)
    while True:
        grown = labels.copy()
        np.maximum(grown[1:], labels[:-1], out=grown[1:])
        np.maximum(grown[:-1], labels[1:], out=grown[:-1])
        np.maximum(grown[:, 1:], labels[:, :-1], out=grown[:, 1:])
        np.maximum(grown[:, :-1], labels[:, 1:], out=grown[:, :-1])
        grown[~mask] = 0
        if np.array_equal(grown, labels):
            return labels
        labels = grown


def _fill_holes(mask: Mask) -> Mask:
    frame = np.pad(~mask, 1, constant_values=True)
    seed = np.zeros(frame.shape, np.int32)
    seed[0] = 1
    filled: Mask = (_spread(seed, frame) == 0)[1:-1, 1:-1]
    return filled


def _parts(mask: Mask) -> list[Mask]:
    labels = _spread(np.arange(1, SIDE * SIDE + 1, dtype=np.int32).reshape(SIDE, SIDE), mask)
    return [labels == n for n in np.unique(labels) if n]


def _box(part: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


# ---------------------------------------------------------------- facts


def _common_shape(parts: list[Mask]) -> tuple[str | None, float]:
    """The shape all parts have and the worst overlap; None where they differ."""
    votes = [_shape(part) for part in parts]
    names = {name for name, _ in votes}
    return (votes[0][0], min(iou for _, iou in votes)) if len(names) == 1 else (None, 0.0)


def _shape(part: Mask) -> tuple[str, float]:
    top, bottom, left, right = _box(part)
    cut, h, w = part[top:bottom, left:right], bottom - top, right - left
    y = np.linspace(-1 + 1 / h, 1 - 1 / h, h, dtype=np.float32)[:, None]
    x = np.linspace(-1 + 1 / w, 1 - 1 / w, w, dtype=np.float32)[None, :]
    overlap = {}
    for name, distance in DISTANCE.items():
        ideal = np.broadcast_to(distance(x, y, 1.0) <= 0, cut.shape)
        overlap[name] = float((cut & ideal).sum() / (cut | ideal).sum())
    best = max(overlap, key=overlap.__getitem__)
    return best, overlap[best] if max(h, w) / min(h, w) < _MOST_STRETCH else 0.0


def _texture(density: Picture, parts: list[Mask]) -> tuple[float, float]:
    """How empty the inside is, and how much rows half a stripe period apart differ."""
    empty, steps = [], []
    for part in parts:
        inner = part & np.roll(part, 1, 0) & np.roll(part, -1, 0) & np.roll(part, 1, 1) & np.roll(part, -1, 1)
        if not inner.any():
            continue
        empty.append(1 - float(density[inner].mean()))
        counts = inner.sum(1)
        rows = np.where(counts > 0, (density * inner).sum(1) / np.maximum(counts, 1), np.nan)
        step = np.abs(rows[4:] - rows[:-4])
        steps.append(float(np.nanmean(step)) if np.isfinite(step).any() else 0.0)
    return (float(np.mean(empty)), float(np.mean(steps))) if empty else (0.0, 0.0)


def _texture_name(hollow: float, banding: float) -> Texture:
    if banding > 0.4:
        return Texture.STRIPES
    return Texture.OUTLINE if hollow > 0.1 else Texture.FILL


def _kind_and_place(parts: list[Mask]) -> tuple[str | None, str | None]:
    if len(parts) > 1:
        return {2: "two", 3: "three"}.get(len(parts)), None
    top, bottom, left, right = _box(parts[0])
    kind = "large" if (bottom - top + right - left) / 2 > _LARGE_PX else "small"
    across = _third((left + right) / 2, ("left", "", "right"))
    down = _third((top + bottom) / 2, ("top", "", "bottom"))
    return kind, f"{down} {across}".strip() or "center"


def _third(middle: float, names: tuple[str, str, str]) -> str:
    return names[0] if middle < 24 else names[2] if middle > 40 else names[1]
