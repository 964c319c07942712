"""The model: a BERT (arXiv 1810.04805) of few layers; the mean of its last states, normalized, is a text's vector.

Its modules are named as GGUF names them, so that exporting is writing down the state as it is.

Every layer begins as the identity: its output projections are zero. So the model starts out as a bag of words, and
while it is one the layers can be left out, which costs a twentieth: `depth` says how many take part, and a layer that
does not still norms, so nothing jumps when it comes in. The table of words, where most of a small model's knowledge
is, learns first; the layers add what order and context say. Nothing is taken from another model's weights.

BERT norms every token, so in a bag "the" would weigh as much as the word that matters. The last norm's scale starts
at zero for one of the dimensions: a token says little by putting its length there.
"""

import dataclasses
import json
import pathlib

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

TOKENS_AT_ONCE = 2048


@dataclasses.dataclass
class Shape:
    vocabulary: int = 12288
    # The teacher's vector length, so that no projection is needed and none has to be stored.
    hidden: int = 384
    layers: int = 2
    heads: int = 6
    feed_forward: int = 1152
    positions: int = 256
    norm_epsilon: float = 1e-12


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads = shape.heads
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (nn.Linear(shape.hidden, shape.hidden) for _ in range(4))
        self.attn_output_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_epsilon)
        self.ffn_up = nn.Linear(shape.hidden, shape.feed_forward)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.hidden)
        self.layer_output_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_epsilon)
        for inner in (self.attn_q, self.attn_k, self.attn_v, self.ffn_up):
            nn.init.normal_(inner.weight, std=shape.hidden**-0.5)
            nn.init.zeros_(inner.bias)
        for output in (self.attn_output, self.ffn_down):
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)

    def forward(self, x, hidden_keys, takes_part):
        if not takes_part:
            return self.layer_output_norm(self.attn_output_norm(x))
        x = self.attn_output_norm(x + self.attention(x, hidden_keys))
        return self.layer_output_norm(x + self.ffn_down(functional.gelu(self.ffn_up(x))))

    def attention(self, x, hidden_keys):
        texts, length, hidden = x.shape
        query, key, value = (
            projection(x).view(texts, length, self.heads, -1).transpose(1, 2)
            for projection in (self.attn_q, self.attn_k, self.attn_v)
        )
        # On short texts and a CPU this is faster than the fused attention, above all backwards.
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + hidden_keys.to(query.dtype)
        attended = scores.softmax(-1, dtype=scores.dtype) @ value
        return self.attn_output(attended.transpose(1, 2).reshape(texts, length, hidden))


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, self.depth = shape, shape.layers
        self.token_embd = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position_embd = nn.Embedding(shape.positions, shape.hidden)
        self.token_embd_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_epsilon)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        nn.init.normal_(self.token_embd.weight, std=0.05)
        # Where a word stands says little at first; its name says nearly all.
        nn.init.normal_(self.position_embd.weight, std=0.002)
        self.blk[-1].layer_output_norm.weight.data[0] = 0.0

    def forward(self, tokens, mask, first_position=0):
        """Token ids and mask `[texts, length]` (1 is a token, 0 padding) to normalized vectors `[texts, hidden]`."""
        positions = self.position_embd.weight[first_position : first_position + tokens.shape[1]]
        x = self.token_embd_norm(self.token_embd(tokens) + positions)
        hidden_keys = torch.where(mask.bool(), 0.0, -1e4)[:, None, None, :]
        for index, layer in enumerate(self.blk):
            x = layer(x, hidden_keys, index < self.depth)
        mean = (x.float() * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)

    def embed(self, token_lists, first_position=0):
        """One vector per list of tokens. Lists of like length run together, so that little is padding."""
        order = sorted(range(len(token_lists)), key=lambda index: len(token_lists[index]))
        vectors, start = [], 0
        while start < len(order):
            end = start + 1
            while end < len(order) and len(token_lists[order[end]]) * (end + 1 - start) <= TOKENS_AT_ONCE:
                end += 1
            part = [token_lists[index] for index in order[start:end]]
            lengths = torch.tensor([len(tokens) for tokens in part])
            longest = len(part[-1])
            mask = (torch.arange(longest) < lengths[:, None]).long()
            tokens = torch.zeros_like(mask)
            tokens[mask.bool()] = torch.from_numpy(np.concatenate(part).astype(np.int64))
            vectors.append(self(tokens, mask, min(first_position, self.shape.positions - longest)))
            start = end
        places = torch.empty(len(order), dtype=torch.long)
        places[order] = torch.arange(len(order))
        return torch.cat(vectors)[places]

    @torch.no_grad()
    def embed_texts(self, tokenizer, texts):
        token_lists = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        return self.embed(token_lists).numpy()

    def save(self, tokenizer, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "shape.json").write_text(json.dumps(dataclasses.asdict(self.shape)))
        torch.save(self.state_dict(), folder / "unfinished.pt")
        (folder / "unfinished.pt").rename(folder / "weights.pt")
        tokenizer.save(str(folder / "tokenizer.json"))


def load(folder):
    folder = pathlib.Path(folder)
    model = Model(Shape(**json.loads((folder / "shape.json").read_text())))
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
