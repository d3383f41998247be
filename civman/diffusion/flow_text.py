"""Runs the text encoders of a flow-matching model (CLIP, T5, language models) with ComfyUI's rules for weights.

A weight w scales the difference between a token's hidden state and the empty prompt's: empty + w · (state − empty).
Qwen models ignore weights, as in ComfyUI. `notes` collects messages for the user, for example that the prompt was cut
off.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from civman.diffusion.file_tokenizers import FileTokenizer
from civman.diffusion.tokenizers import QWEN_PADDING, load_tokenizer
from civman.diffusion.uploads import sent
from civman.prompts.emphasis import Fragment, ParsedPrompt
from civman.prompts.tokenizer import CHUNK, END, START, clip_tokenizer

_MISTRAL_PADDING = "<pad>"
"""The name of Mistral's padding token, which a tokenizer read from a file converts to the token's id."""


class FlowText:
    """The text encoders of one flow-matching model."""

    def __init__(
        self, components: Mapping[str, nn.Module], device: torch.device, tokenizers: Mapping[str, FileTokenizer] = {}
    ) -> None:
        """Wrap the text encoders among `components`; `tokenizers` contains the tokenizers that were read from files."""
        self._components, self._device, self._tokenizers = components, device, tokenizers
        self.notes: list[str] = []

    def clip(
        self, component: str, parsed: ParsedPrompt, layer: int = -1, most: int = CHUNK + 2
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Encode a prompt; return a layer's hidden states (1, `most`, width) and the pooled vector (1, width).

        `most`: the number of tokens that the encoder reads, including the start and end tokens.

        `layer` counts from the end: -1 is the output of the last layer after the final norm, -2 that of the
        second-to-last layer without the norm. The pooled vector is the hidden state of the first end token, projected
        if the encoder has a projection.
        """
        encoder: Any = self._components[component]
        tokenizer = clip_tokenizer()
        ids, weights = _weighted(parsed, tokenizer.ids)
        room = most - 2
        if len(ids) > room:
            self._cut("CLIP", len(ids), room)
        ids, weights = ids[:room], weights[:room]
        rows = [[START, *ids, END]]
        if any(weight != 1 for weight in weights):
            rows.append([START, END])
        padding = int(encoder.config.pad_token_id)
        tokens = self._sent([row + [padding] * (most - len(row)) for row in rows])
        with torch.no_grad():
            answer = encoder(tokens, output_hidden_states=True)
        states = answer.last_hidden_state if layer == -1 else answer.hidden_states[layer]
        at_end = answer.last_hidden_state[0, len(ids) + 1][None]
        pooled = encoder.text_projection(at_end) if hasattr(encoder, "text_projection") else at_end
        return _moved(states, [1.0, *weights, 1.0]), pooled

    def t5(
        self, component: str, parsed: ParsedPrompt, least: int, most: int, *, hides_padding: bool = False
    ) -> Tensor:  # fmt: skip
        """Encode a prompt as (1, tokens, width), padded to `least` tokens and cut off at `most` tokens.

        The encoder also attends to padding tokens, as in ComfyUI and in diffusers' Flux pipeline. With `hides_padding`,
        it does not, but the padding's hidden states are part of the result.
        """
        encoder: Any = self._components[component]
        tokenizer = load_tokenizer("t5")
        ids, weights = self._t5_tokens(parsed, most)
        ends = [] if tokenizer.end is None else [tokenizer.end]
        length = max(least, len(ids))
        rows = [ids]
        if any(weight != 1 for weight in weights):
            rows.append(ends)
        tokens = self._sent([row + [tokenizer.padding] * (length - len(row)) for row in rows])
        mask = None
        if hides_padding:
            mask = self._sent([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        with torch.no_grad():
            return _moved(encoder(tokens, attention_mask=mask).last_hidden_state, weights)

    def masked_t5(self, component: str, parsed: ParsedPrompt, length: int) -> Tensor:
        """Encode a prompt as (1, length, width), with zeros after the end token.

        A prompt that is too long is cut off, and the end token is kept.

        The tokenizer is read from a file. No token attends to the padding after the end token, as in ComfyUI and in
        diffusers' AuraFlow pipeline.
        """
        encoder: Any = self._components[component]
        ids, weights = self.piece_ids(component, parsed, length - 1, starts=False)
        end, padding = int(encoder.config.eos_token_id), int(encoder.config.pad_token_id)
        texts = [[*ids, end]]
        if any(weight != 1 for weight in weights):
            texts.append([end])
        tokens = self._sent([text + [padding] * (length - len(text)) for text in texts])
        mask = self._sent([[1] * len(text) + [0] * (length - len(text)) for text in texts])
        with torch.no_grad():
            states = encoder(tokens, attention_mask=mask).last_hidden_state
        return _moved(states * mask[..., None], weights)

    @property
    def context_width(self) -> int:
        """The width of the text embeddings that the transformer takes as input."""
        transformer: Any = self._components["transformer"]
        return int(transformer.config.joint_attention_dim)

    def has(self, component: str) -> bool:
        """Whether the model has this optional text encoder."""
        return component in self._components

    def qwen_ids(self, text: str, most: int) -> list[int]:
        """Tokenize a text for a Qwen model; return at most `most` token ids."""
        fitted = load_tokenizer("qwen").fit(text, most)
        if fitted.note:
            self.note(fitted.note)
        return fitted.ids

    def t5_ids(self, parsed: ParsedPrompt, most: int) -> tuple[Tensor, list[float]]:
        """Return a prompt's T5 token ids (1, tokens), including the end token, and the weight of each token."""
        ids, weights = self._t5_tokens(parsed, most)
        return self._sent([ids]), weights

    def _t5_tokens(self, parsed: ParsedPrompt, most: int) -> tuple[list[int], list[float]]:
        tokenizer = load_tokenizer("t5")
        ids, weights = _weighted(parsed, lambda text: _without(tokenizer.encode(text), tokenizer.end))
        if len(ids) + 1 > most:
            self._cut("T5", len(ids) + 1, most)
        ends = [] if tokenizer.end is None else [tokenizer.end]
        ids, weights = ids[: most - len(ends)] + ends, weights[: most - len(ends)]
        return ids, [*weights, *[1.0] * len(ends)]

    def piece_ids(
        self, component: str, parsed: ParsedPrompt, most: int, *, starts: bool = True, ends: bool = False
    ) -> tuple[list[int], list[float]]:
        """Tokenize a prompt with a tokenizer read from a file; return at most `most` ids, and each token's weight.

        `starts`, `ends`: whether the ids begin with the tokenizer's start token and end with its end token.
        """
        tokenizer = self._tokenizers[component]
        ids, weights = _weighted(parsed, tokenizer.encode)
        before = [tokenizer.start] if starts and tokenizer.start is not None else []
        after = [tokenizer.end] if ends and tokenizer.end is not None else []
        room = most - len(before) - len(after)
        if len(ids) > room:
            self._cut(tokenizer.title, len(ids) + most - room, most)
        inner = weights[:room]
        return [*before, *ids[:room], *after], [*[1.0] * len(before), *inner, *[1.0] * len(after)]

    def file_ids(self, component: str, text: str, most: int) -> list[int]:
        """Tokenize a text with a tokenizer read from a file; return at most `most` ids, without a start token."""
        ids, _ = self.piece_ids(component, ParsedPrompt(text, ((Fragment(text, 1.0),),)), most, starts=False)
        return ids

    def plain(self, parsed: ParsedPrompt) -> str:
        """Return the prompt's text without its weights and their brackets."""
        return "".join(fragment.text for section in parsed.sections for fragment in section)

    def run(self, component: str, *arguments: Any) -> Any:
        """Run one of the model's other networks, such as Anima's text adapter, and return its output."""
        with torch.no_grad():
            return self._components[component](*arguments)

    def language_model(
        self, component: str, ids: Sequence[int], layer: int | tuple[int, ...] | None, weights: Sequence[float] = (),
        *, least: int = 0, pads_before: bool = False, padding: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Encode token ids as (1, tokens, width).

        `layer`: the index of the hidden states to return, such as -2; with several indices, these hidden states are
        concatenated along the width; with None, the last layer's states are returned, after the final norm. `weights`:
        one for each token. They act relative to the empty prompt, which here is the first token followed by masked
        padding. `least`: the number of tokens up to which the ids are padded with `padding` (None: the padding token of
        Qwen or Mistral), after the text or, with `pads_before`, before it. No token attends to the padding, but the
        padding's hidden states are part of the result.
        """
        encoder: Any = self._components[component]
        rows, mask = [list(ids)], None
        if len(ids) < least:
            filler = [self._padding(component) if padding is None else padding] * (least - len(ids))
            rows = [[*filler, *ids] if pads_before else [*ids, *filler]]
            hidden, seen = [0] * len(filler), [1] * len(ids)
            mask = self._sent([hidden + seen if pads_before else seen + hidden])
        if any(weight != 1 for weight in weights):
            rest = len(ids) - 1
            rows.append([ids[0], *[int(encoder.config.pad_token_id)] * rest])
            mask = self._sent([[1] * len(ids), [1, *[0] * rest]])
        tokens = self._sent(rows)
        with torch.no_grad():
            answer = encoder(input_ids=tokens, attention_mask=mask, output_hidden_states=layer is not None)
        if layer is None:
            states: Tensor = answer.last_hidden_state
        else:
            chosen = layer if isinstance(layer, tuple) else (layer,)
            states = torch.cat([answer.hidden_states[each] for each in chosen], dim=-1)
        return _moved(states, weights)

    def note(self, words: str) -> None:
        """Add a message for the user to `notes`, unless it is already there."""
        if words not in self.notes:
            self.notes.append(words)

    def _sent(self, rows: list[list[int]]) -> Tensor:
        return sent(torch.tensor(rows), self._device)

    def _padding(self, component: str) -> int:
        tokenizer = self._tokenizers.get(component)
        return QWEN_PADDING if tokenizer is None else tokenizer.encode(_MISTRAL_PADDING)[0]

    def _cut(self, title: str, count: int, most: int) -> None:
        self.note(f"the prompt has {count} tokens, but {title} reads only the first {most}")


def _weighted(parsed: ParsedPrompt, encode: Any) -> tuple[list[int], list[float]]:
    """Tokenize each fragment separately, and give each token the weight of its fragment."""
    ids: list[int] = []
    weights: list[float] = []
    for fragment in _merged(chain.from_iterable(parsed.sections)):
        found = list(encode(fragment.text))
        ids += found
        weights += [fragment.weight] * len(found)
    return ids, weights


def _merged(fragments: Iterable[Fragment]) -> list[Fragment]:
    """Join adjacent fragments of equal weight, so that a prompt without weights is tokenized as a whole."""
    merged: list[Fragment] = []
    for fragment in fragments:
        if merged and merged[-1].weight == fragment.weight:
            merged[-1] = Fragment(merged[-1].text + fragment.text, fragment.weight)
        else:
            merged.append(fragment)
    return merged


def _without(ids: Sequence[int], end: int | None) -> list[int]:
    return list(ids[:-1]) if ids and ids[-1] == end else list(ids)


def _moved(states: Tensor, weights: Sequence[float]) -> Tensor:
    """Apply weights to the first row of `states`, relative to the second row (the empty prompt), if there is one."""
    if len(states) == 1:
        return states
    full = torch.ones(states.shape[1])
    full[: len(weights)] = torch.tensor(list(weights), dtype=torch.float32)
    text, empty = states[:1].float(), states[1:].float()
    return (empty + (text - empty) * sent(full, states.device)[None, :, None]).to(states.dtype)
