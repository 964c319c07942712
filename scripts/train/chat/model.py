"""The chat model: a decoder of the llama architecture with tied embeddings, small enough to train on a CPU.

RMS norms before attention and before the gated (SwiGLU) feed-forward, rotary positions over halves of a head, no
biases. `export.py` writes it as GGUF.
"""
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Config:
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 6
    head_dim: int = 64
    feed_forward: int = 640
    rope_base: float = 10000.0
    epsilon: float = 1e-5
    context_length: int = 2048


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, inner = config.hidden, config.heads * config.head_dim
        self.config = config
        self.attention_norm = nn.RMSNorm(hidden, config.epsilon)
        self.query_key_value = nn.Linear(hidden, 3 * inner, bias=False)
        self.attention_output = nn.Linear(inner, hidden, bias=False)
        self.feed_forward_norm = nn.RMSNorm(hidden, config.epsilon)
        self.gate_up = nn.Linear(hidden, 2 * config.feed_forward, bias=False)
        self.down = nn.Linear(config.feed_forward, hidden, bias=False)

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape
        heads = self.query_key_value(self.attention_norm(x)).view(rows, length, 3, self.config.heads, self.config.head_dim)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(rotate(query, cos, sin), rotate(key, cos, sin), value)
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def attend(query, key, value):
    """Causal attention. Short rows in low precision are faster as plain products than in the fused kernel (on a CPU)."""
    length = query.shape[-2]
    if length > 512 or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    later = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    flat = [x.flatten(0, 1) for x in (query, key, value)]
    scores = torch.baddbmm(later.expand(len(flat[0]), -1, -1), flat[0], flat[1].transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), flat[2]).view(query.shape)


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = nn.RMSNorm(config.hidden, config.epsilon)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.blocks:
            for layer in (block.query_key_value, block.gate_up):
                nn.init.normal_(layer.weight, std=0.6 * config.hidden**-0.5)
            for layer in (block.attention_output, block.down):
                nn.init.zeros_(layer.weight)
        half = config.head_dim // 2
        angles = torch.arange(config.context_length)[:, None] * config.rope_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids, positions=None):
        """Logits [rows, length, vocabulary], or [n, vocabulary] of the given positions of the flattened rows."""
        length = ids.shape[1]
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        x = self.output_norm(x)
        if positions is not None:
            x = x.flatten(0, 1)[positions]
        return F.linear(x, self.embedding.weight)
