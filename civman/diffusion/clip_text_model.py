"""CLIP's text encoder, with the parameter names of transformers' CLIPTextModel and bit-identical results.

transformers' own class takes 0.4 s to import, so it is used only if diffusers' pipelines need it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
}  # fmt: skip
"""The defaults of transformers' CLIPTextConfig."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A text encoder's output for token ids (B, tokens).

    `hidden_states` contains the token embeddings and each layer's output, (B, tokens, width); `last_hidden_state` is
    the last layer's output after the final norm.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]


class ClipText(nn.Module):
    """CLIP's text encoder without a projection."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{**DEFAULTS, **config})
        self.embeddings = _Embeddings(self.config)
        self.encoder = Layers(self.config)
        self.final_layer_norm = norm(self.config)

    def forward(self, input_ids: Tensor, **_: Any) -> Encoded:
        """Encode token ids (B, tokens)."""
        states = [self.embeddings(input_ids)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return Encoded(self.final_layer_norm(states[-1]), tuple(states))


class ClipTextWithProjection(nn.Module):
    """CLIP's text encoder with the weights of the projection, which the caller has to apply to the pooled output."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.text_model = ClipText(config)
        self.config = self.text_model.config
        self.text_projection = nn.Linear(self.config.hidden_size, self.config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor, **_: Any) -> Encoded:
        """Encode token ids (B, tokens); the pooled output is not projected yet."""
        encoded: Encoded = self.text_model(input_ids)
        return encoded


class _Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        places = torch.arange(config.max_position_embeddings).expand((1, -1))
        self.register_buffer("position_ids", places, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = self.get_buffer("position_ids")[:, : input_ids.shape[-1]]
        tokens, positions = self.token_embedding(input_ids), self.position_embedding(places)
        added: Tensor = tokens + positions
        return added


class Layers(nn.Module):
    """The layers of a CLIP encoder. With `is_causal`, each token attends only to itself and earlier tokens."""

    def __init__(self, config: Any, *, is_causal: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config, is_causal) for _ in range(config.num_hidden_layers)])


class _Layer(nn.Module):
    def __init__(self, config: Any, is_causal: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(config, is_causal)
        self.layer_norm1 = norm(config)
        self.mlp = _Mlp(config)
        self.layer_norm2 = norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        added: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return added


class _Attention(nn.Module):
    def __init__(self, config: Any, is_causal: bool) -> None:
        super().__init__()
        self._is_causal = is_causal
        width = config.hidden_size
        self._head = width // config.num_attention_heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        shape = (*hidden.shape[:-1], -1, self._head)
        query, key, value = (
            each(hidden).view(shape).transpose(1, 2) for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = functional.scaled_dot_product_attention(
            query, key, value, scale=self._head**-0.5, is_causal=self._is_causal
        )
        joined: Tensor = self.out_proj(seen.transpose(1, 2).reshape(hidden.shape).contiguous())
        return joined


class _Mlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self._is_quick = config.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.fc1(hidden)
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self._is_quick else functional.gelu(hidden)
        projected: Tensor = self.fc2(hidden)
        return projected


def norm(config: Any) -> nn.LayerNorm:
    """Create a layer norm with the width and the epsilon of an encoder's config."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
