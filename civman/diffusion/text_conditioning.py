"""Encodes a parsed prompt for the UNet with A1111's rules for weights, clip skip, padding and pooling.

The text encoders determine which rules apply: an encoder with a `text_projection` means SDXL (or its refiner), a single
encoder with `gelu` is SD 2.x's OpenCLIP, and any other single encoder is SD 1.x's CLIP-L. SD 2.x's encoder must be
built without its last layer, as in diffusers, so that its last hidden state is the penultimate one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from civman.diffusion.textual_inversions import Embedding
from civman.diffusion.uploads import sent
from civman.errors import Cause, UsageError
from civman.prompts import comfyui_chunks
from civman.prompts.emphasis import ParsedPrompt
from civman.prompts.token_chunks import Chunk, cut
from civman.prompts.tokenizer import CHUNK, END, START, ClipTokenizer


def encode(
    text_encoders: Sequence[nn.Module],
    tokenizers: Sequence[ClipTokenizer],
    parsed: ParsedPrompt,
    clip_skip: int = 1,
    embeddings: Sequence[Embedding] = (),
    *,
    is_negative: bool = False,
    emphasis: str = "original",
) -> tuple[Tensor, Tensor | None]:
    """Encode a prompt as context (1, 77·chunks, width) and, for SDXL, pooled (1, projection).

    Both have the encoders' dtype and device.

    Chunks are encoded one at a time, so that a chunk's bits do not depend on the rest of the prompt. Prompts of
    different lengths give contexts of different lengths; they are not padded to equal length.

    Args:
        text_encoders: CLIPTextModel or CLIPTextModelWithProjection, in the model's order.
        tokenizers: one for each encoder; they differ in padding.
        parsed: the prompt.
        clip_skip: as in A1111, 1 is the last layer, 2 the second-to-last. Used only for SD 1.x and, by ComfyUI's
            rules, for SDXL.
        embeddings: the embeddings that the prompt may use.
        emphasis: how the weights act; one of `civman.domain.recipes.recipe_limits.EMPHASIS`.
        is_negative: whether this is the negative prompt. With SDXL, an empty negative prompt gives zeros instead of
            the encoding of "", except by ComfyUI's rules.

    Raises:
        UsageError: clip skip is out of range, or two embeddings have the same name.
        Incompatible: an embedding is too long.
    """
    is_xl = any(hasattr(encoder, "text_projection") for encoder in text_encoders)
    if is_xl and is_negative and parsed.is_empty and emphasis != "comfyui":
        return _zeros(text_encoders)
    layer = 2 if is_xl and emphasis != "comfyui" else clip_skip
    contexts: list[Tensor] = []
    pooled: Tensor | None = None
    with torch.no_grad():
        split = comfyui_chunks.cut if parsed.syntax == "comfyui" else cut
        pieces = [
            split(parsed, tokenizer, {embedding.name: embedding.length_in(number) for embedding in embeddings})
            for number, tokenizer in enumerate(tokenizers)
        ]
        # the encoders may need different numbers of chunks, because an embedding may have vectors for only one of them
        longest = max(map(len, pieces))
        for number, (encoder, tokenizer) in enumerate(zip(text_encoders, tokenizers, strict=True)):
            vectors = {each.name: values for each in embeddings if (values := each.vectors[number]) is not None}
            parts = []
            chunks = [*pieces[number], *[Chunk((), ())] * (longest - len(pieces[number]))]
            empty = Chunk((), ())
            tokens = [_tokens(chunk, tokenizer.padding) for chunk in (*chunks, empty)]
            device = _device(encoder)
            ids, weights = sent(torch.tensor(tokens), device), sent(_weights(chunks), device)
            for place, chunk in enumerate(chunks):
                row = slice(place, place + 1)
                hidden, end = _run(encoder, chunk, ids[row], _end(tokens[place]), vectors, layer, is_xl=is_xl)
                if emphasis == "comfyui" and any(weight != 1 for weight in chunk.weights):
                    plain, _ = _run(encoder, empty, ids[-1:], _end(tokens[-1]), {}, layer, is_xl=is_xl)
                    hidden = _moved(hidden, plain, weights[row])
                else:
                    hidden = _weighted(hidden, chunk, weights[row], emphasis)
                parts.append(hidden)
                if place == 0 and hasattr(encoder, "text_projection"):
                    pooled = _projection(encoder)(end)
            contexts.append(torch.cat(parts, dim=1))
    return torch.cat(contexts, dim=-1), pooled


def lengthened(context: Tensor, filling: Tensor, tokens: int) -> Tensor:
    """Append `filling` (1, m, width) to `context` (1, n, width) until it has `tokens` tokens (A1111's "Pad conds")."""
    missing = (tokens - context.shape[1]) // filling.shape[1]
    return torch.cat([context, *[filling] * missing], dim=1) if missing > 0 else context


def _zeros(text_encoders: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    last: Any = text_encoders[-1]
    where: Any = {"dtype": next(last.parameters()).dtype, "device": _device(last)}
    width = sum(int(_config(encoder).hidden_size) for encoder in text_encoders)
    return torch.zeros(1, CHUNK + 2, width, **where), torch.zeros(1, int(last.text_projection.weight.shape[0]), **where)


def _device(encoder: nn.Module) -> torch.device:
    """Return the device on which an encoder computes.

    Its weights may be somewhere else until it is called: on the CPU (`memory_plan.take_turns`) or, for large weights,
    on the meta device (`layer_streaming.stream`). In both cases, accelerate's attribute `_hf_hook` contains
    the device on which the encoder computes.
    """
    hook: Any = getattr(encoder, "_hf_hook", None)
    if hook is not None:
        return torch.device(hook.execution_device)
    return next(parameter.device for parameter in encoder.parameters() if not parameter.is_meta)


def _config(encoder: Any) -> Any:
    return encoder.config


def _projection(encoder: Any) -> Any:
    return encoder.text_projection


def _tokens(chunk: Chunk, padding: int) -> list[int]:
    """Return the 77 token ids of a chunk.

    Ids after the first end token have no effect on the encoding; the prompt itself may contain the end token.
    """
    ids = [START, *chunk.ids, END]
    ids = ids[: _end(ids) + 1] if padding != END else ids
    return ids + [padding] * (CHUNK + 2 - len(ids))


def _end(ids: list[int]) -> int:
    return ids.index(END)


def _run(
    encoder: Any, chunk: Chunk, ids: Tensor, first_end: int, vectors: dict[str, Tensor], clip_skip: int,
    *, is_xl: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Encode the token ids (1, 77) of one chunk.

    Returns the hidden states (1, 77, width) and the last layer's hidden state at the first end token, (1, width). In
    transformers 5.17 to 5.23, `hidden_states[-1]` is the last layer's output before the final norm.
    """
    model = getattr(encoder, "text_model", encoder)
    with _inserted(model.embeddings.token_embedding, chunk, vectors):
        states = encoder(ids, output_hidden_states=True)
    at_end = states.last_hidden_state[:, first_end]
    layers = int(encoder.config.num_hidden_layers)
    if is_xl and (clip_skip == 2 or 1 <= clip_skip <= layers):
        return states.hidden_states[-clip_skip], at_end
    if clip_skip == 1 or encoder.config.hidden_act == "gelu":
        return states.last_hidden_state, at_end
    if not 1 <= clip_skip <= layers:
        raise UsageError(
            f"clip skip must be 1 to {layers} (the text encoder's number of layers), not {clip_skip}",
            code=Cause.CLIP_SKIP,
            clip_skip=clip_skip,
            layers=layers,
        )
    return model.final_layer_norm(states.hidden_states[-clip_skip]), at_end


@contextmanager
def _inserted(embedding: nn.Module, chunk: Chunk, vectors: dict[str, Tensor]) -> Iterator[None]:
    """Inside this block, replace token vectors with those of embeddings; the token table itself does not change."""

    def put(_module: nn.Module, _arguments: object, output: Tensor) -> Tensor:
        for insert in chunk.inserts:
            start = insert.offset + 1  # skip the start token
            if insert.length:
                part = vectors[insert.name][insert.begin : insert.begin + insert.length]
                output[:, start : start + insert.length] = sent(part.to(output.dtype), output.device)
        return output

    hook = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def _weights(chunks: Sequence[Chunk]) -> Tensor:
    """Return the weights of all tokens, (chunks, 77); start, end and padding tokens have weight 1."""
    weights = torch.ones(len(chunks), CHUNK + 2)
    for row, chunk in zip(weights, chunks, strict=True):
        row[1 : 1 + len(chunk.weights)] = torch.tensor(chunk.weights)
    return weights


def _moved(hidden: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """Scale the difference between each token's vector and the empty prompt's by the token's weight, as in ComfyUI.

    `weights` is (1, 77).
    """
    weights = weights[..., None]
    exact, base = hidden.float(), empty.float()
    return torch.where(weights == 1, exact, (exact - base) * weights + base).to(hidden.dtype)


def _weighted(hidden: Tensor, chunk: Chunk, weights: Tensor, emphasis: str) -> Tensor:
    """Multiply each token's vector by its weight; with the emphasis "original", restore the mean of all values.

    `hidden` is (1, 77, width), `weights` (1, 77).
    """
    if emphasis in ("ignore", "none") or all(weight == 1 for weight in chunk.weights):
        return hidden
    exact = hidden.float()
    turned = exact * weights[..., None]
    if emphasis == "no norm":
        return turned.to(hidden.dtype)
    return (turned * (exact.mean() / turned.mean())).to(hidden.dtype)
