"""The demo's finished checkpoint, for what is trained on top of it: its networks, and captions as its token rows."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from civman.diffusion.loader import load
from civman.prompts.tokenizer import END, START, clip_tokenizer
from training.words import POSITIONS


def finished(checkpoint: Path) -> Any:
    """The UNet, the autoencoder and the text encoder with all of CLIP's rows, frozen, float32."""
    parts = load(checkpoint, dtype=torch.float32).components
    net = nn.ModuleDict({"unet": parts["unet"], "vae": parts["vae"], "text": parts["text_encoder"]})
    return net.eval().requires_grad_(requires_grad=False)


class AllWords:
    """CLIP's whole vocabulary, for a text encoder with a row for each token."""

    def __init__(self) -> None:
        self.tokenizer = clip_tokenizer()

    def rows(self, captions: list[str], _rng: random.Random, *, strays: float) -> Tensor:  # noqa: ARG002
        """Token ids padded with the end token, (B, 77) int64. No stray words: the text encoder is finished."""
        out = torch.full((len(captions), POSITIONS), END)
        for row, caption in zip(out, captions, strict=True):
            ids = [START, *self.tokenizer.ids(caption)][: POSITIONS - 1]
            row[: len(ids)] = torch.tensor(ids)
        return out
