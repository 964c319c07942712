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
    rope_base: float = 500000.0
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
        heads = self.query_key_value(self.attention_norm(x)).view(
            rows, length, 3, self.config.heads, self.config.head_dim
        )
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(rotate(query, cos, sin), rotate(key, cos, sin), value)
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def attend(query, key, value):
    """Causal attention. On a CPU, short rows in low precision are faster as plain products than fused."""
    length = query.shape[-2]
    if length > 512 or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    later = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    flat = [x.flatten(0, 1) for x in (query, key, value)]
    scores = torch.baddbmm(
        later.expand(len(flat[0]), -1, -1), flat[0], flat[1].transpose(1, 2), alpha=query.shape[-1] ** -0.5
    )
    return torch.bmm(scores.softmax(-1), flat[2]).view(query.shape)


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class Model(nn.Module):
    def __init__(self, config, boundaries=()):
        """boundaries: the tokens after which a sentence begins, for a model that is to be trained."""
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
        frequencies = config.rope_base ** (-torch.arange(half) / half)
        if boundaries:
            self.begin_to_copy(frequencies, boundaries)
        angles = torch.arange(config.context_length)[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @torch.no_grad()
    def begin_to_copy(self, frequencies, boundaries):
        """Start from weights that continue a text as it went on before, which otherwise takes long to be found.

        Heads of the first layer look one and two tokens back and write what they see where embeddings are zero. Heads
        of the second look for the place whose two previous tokens are the present and the last one, and write its
        token; another finds the first token of the present sentence. A head of the third looks for the same token
        earlier and takes over the first token of that sentence. Matching uses the slowly rotating pairs of a head,
        which do not feel distance. After "induction heads" (Olsson et al., 2022) and "mimetic" initialization
        (Trockman and Kolter, 2023). Training changes all of it.
        """
        config = self.config
        size, half, quarter = config.head_dim, config.head_dim // 2, config.head_dim // 4
        scale, constant, sharpness = 0.05, 6.0, 1.1
        token, last, before = slice(1, 128), slice(128, 192), slice(192, 256)
        self.embedding.weight.normal_(std=scale)
        self.embedding.weight[:, 0] = constant * scale
        self.embedding.weight[:, 128:] = 0
        seen = nn.init.orthogonal_(torch.empty(size, 127))
        slow = torch.cat((torch.arange(quarter, half), torch.arange(quarter, half) + half))
        fast, middle = torch.arange(10), torch.arange(4, 11)

        def parts(block):
            return block.query_key_value.weight.view(3, config.heads, size, config.hidden)

        look_back = parts(self.blocks[0])
        for head, (distance, where) in enumerate(((1, last), (2, before))):
            look_back[:, head] = 0
            look_back[0, head, fast, 0] = sharpness
            look_back[1, head, fast, 0] = sharpness * (distance * frequencies[fast]).cos()
            look_back[1, head, fast + half, 0] = sharpness * (distance * frequencies[fast]).sin()
            look_back[2, head, :, token] = seen
            self.blocks[0].attention_output.weight[where, head * size : (head + 1) * size] = torch.eye(size) * scale

        def write(block, head, where, matrix):
            self.blocks[block].attention_output.weight[where, head * size : head * size + matrix.shape[1]] = (
                matrix * scale
            )

        tokens = nn.init.orthogonal_(torch.empty(127, 127))
        match = parts(self.blocks[1])
        for head in range(2):
            which, also = torch.randperm(size)[: len(slow)], torch.randperm(size)[: len(slow)]
            copied = tokens[head * size : (head + 1) * size]
            match[:, head] = 0
            match[0, head, slow, token] = 1.6 * seen[which]
            match[1, head, slow, last.start + which] = 1.6
            match[0, head, slow, last.start + also] = 1.4
            match[1, head, slow, before.start + also] = 1.4
            match[2, head, : len(copied), token] = copied
            write(1, head, token, 4 * copied.T)

        start = nn.init.orthogonal_(torch.empty(size, 127))
        code = nn.init.orthogonal_(torch.empty(127, size))
        match[:, 2] = 0
        match[0, 2, middle, 0] = match[1, 2, middle, 0] = 0.5
        ends = sum(seen @ self.embedding.weight[b, token] for b in boundaries)
        match[0, 2, slow[0], 0] = 1.6
        match[1, 2, slow[0], last] = 1.6 * ends / ends.norm()
        match[2, 2, :, token] = start
        write(1, 2, token, 1.5 * code)

        same = parts(self.blocks[2])
        same[:, 0] = 0
        same[0, 0, slow, token] = same[1, 0, slow, token] = 1.6 * nn.init.orthogonal_(torch.empty(len(slow), 127))
        same[2, 0, :, token] = code.T
        write(2, 0, before, torch.eye(size))

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
