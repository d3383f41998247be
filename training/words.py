"""Captions as token rows. Only the few tokens that captions use are trained; all others share one vector, "other"."""

import random
from typing import Any

import torch
from torch import Tensor

from civman.prompts.tokenizer import END, START, clip_tokenizer
from training.scenes import BLAME, PLACES, PRAISE, UNNAMED_SHAPE, every_scene, sentence, tags

POSITIONS, ROWS = 77, 49408
OTHER = -1


class Words:
    """The trained part of CLIP's vocabulary, renumbered from 0; the number after the last means "other"."""

    def __init__(self, padding: int = END) -> None:
        self.tokenizer, self.padding = clip_tokenizer(), padding
        texts = [
            say(scene, noun=noun) for scene in every_scene() for say in (sentence, tags) for noun in (None, "shape")
        ]
        texts += [", ".join((*PRAISE, *BLAME)), " at the ".join(PLACES), "in the center"]
        used = {i for text in texts for i in self.tokenizer.ids(text)} | {START, END, padding}
        if forbidden := used.intersection(self.tokenizer.ids(f"{UNNAMED_SHAPE} {UNNAMED_SHAPE}s")):
            raise ValueError(f"the unnamed shape is named: {forbidden}")
        self.used = sorted(used)
        self.other = len(self.used)
        self._small = torch.full((ROWS,), self.other)
        self._small[self.used] = torch.arange(self.other)

    def small(self, token: int) -> int:
        """The trained row of one of CLIP's token ids."""
        return int(self._small[token])

    def rows(self, captions: list[str], rng: random.Random, *, strays: float = 0.12) -> Tensor:
        """Token rows with an end token and padding, (B, 77) int64; some get stray unknown words put between theirs."""
        out = torch.full((len(captions), POSITIONS), self.small(self.padding))
        for row, caption in zip(out, captions, strict=True):
            body = [self.small(token) for token in self.tokenizer.ids(caption)]
            if body and rng.random() < strays:
                at = rng.choice((0, len(body), rng.randint(0, len(body))))
                body[at:at] = [self.other] * rng.randint(1, 8)
            body = [*[self.small(START), *body][: POSITIONS - 1], self.small(END)]
            row[: len(body)] = torch.tensor(body)
        return out

    def widen(self, table: Tensor) -> Tensor:
        """The trained table, (len(used) + 1, D), as one of all 49,408 rows."""
        full = table[self.other].repeat(ROWS, 1)
        full[self.used] = table[: self.other]
        return full


def full_encoder(text: Any, words: Words) -> Any:
    """The trained text encoder with every row of CLIP's table."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from training import layout

    full = CLIPTextModel(CLIPTextConfig(**layout.TEXT))
    state = dict(text.state_dict())
    key = next(k for k in state if k.endswith("token_embedding.weight"))
    state[key] = words.widen(state[key])
    full.load_state_dict(state)
    return full
