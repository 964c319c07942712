#!/usr/bin/env python3
"""Writes a GGUF of a published Llama's shape with random weights in the types of a published quantization.

A speed does not depend on what the weights say, but it depends on their shapes and types, and on the size of the
vocabulary. So a file of this kind stands for the published one where that cannot be had. The blocks are made directly:
random bytes, with scales chosen so that each weight has mean 0 and a standard deviation of 0.02, which keeps the
logits finite. Q4_K_M is llama.cpp's recipe (`llama_tensor_get_type` in src/llama-quant.cpp): Q4_K, with Q6_K for the
output matrix and for half of the matrices `attn_v` and `ffn_down`; the 1B shape then has the bytes of the published
file. Norms and the factors of the rope's frequencies are F32.

What such a file cannot show is left to real ones: whether the text is any good, and the speed of anything that depends
on it, such as speculation.

usage: synthetic_llama.py SHAPE RECIPE VOCAB.gguf OUT.gguf
       SHAPE llama-3.2-1b, llama-3.2-3b or llama-3.1-8b; RECIPE Q4_K_M or Q8_0; VOCAB a file
       with `tokenizer.*` keys, such as ggml-vocab-llama-bpe.gguf of llama.cpp
needs: gguf, numpy
"""

import math
import os
import sys
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

DEVIATION = 0.02
# Elements and bytes of a block.
BLOCKS = {"Q4_K": (256, 144), "Q6_K": (256, 210), "Q8_0": (32, 34)}


@dataclass
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    # The embedding is the output matrix as well.
    tied: bool
    # By which Llama 3.1 and 3.2 stretch the slow frequencies of their rope.
    rope_factor: float


SHAPES = {
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, True, 32.0),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 128, 8192, True, 32.0),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, False, 8.0),
}
ROPE_BASE, ROPE_TRAINED, ROPE_SLOW, ROPE_FAST = 500_000.0, 8192, 1.0, 4.0


def half(values):
    """The little-endian bytes of half-precision numbers, [n, 2]."""
    return np.asarray(values, dtype="<f2").reshape(-1, 1).view(np.uint8)


def blocks(kind, count, rng):
    """Random blocks, [count, bytes of a block]."""
    _, size = BLOCKS[kind]
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    # A step is what one unit of the stored integer is worth before the blocks' own variation.
    vary = rng.uniform(0.8, 1.25, count)
    if kind == "Q8_0":
        step = DEVIATION / math.sqrt((256**2 - 1) / 12)
        data[:, :2] = half(step * vary)
    elif kind == "Q6_K":
        # The block's d stands last, after 16 signed scales; these are kept small, so that d is a normal number.
        scales = rng.integers(-16, 16, (count, 16), dtype=np.int8)
        data[:, 192:208] = scales.view(np.uint8)
        step = DEVIATION / math.sqrt((64**2 - 1) / 12 * (32**2 - 1) / 12)
        data[:, 208:] = half(step * vary)
    elif kind == "Q4_K":
        # Scale and minimum of each part are the same 6-bit number, whose bits lie in three groups of four bytes, and
        # d * scale * q - dmin * scale has mean 0 with dmin = 7.5 d.
        data[:, 8:12] = data[:, 4:8]
        data[:, 12:16] = (data[:, 12:16] & 15) * 17
        mean_square = (63 * 127) / 6
        step = DEVIATION / math.sqrt((16**2 - 1) / 12 * mean_square)
        data[:, :2], data[:, 2:4] = half(step * vary), half(7.5 * step * vary)
    return data


def more_bits(layer, layers):
    """Whether Q4_K_M gives the layer Q6_K: the first and the last eighth have it, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def rope_factors(shape):
    """What Llama 3.1's rope divides its frequencies by: 1 for fast ones, the factor for slow ones, or between."""
    factors = []
    for pair in range(shape.head_size // 2):
        wave = 2 * math.pi * ROPE_BASE ** (2 * pair / shape.head_size)
        smooth = (ROPE_TRAINED / wave - ROPE_SLOW) / (ROPE_FAST - ROPE_SLOW)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / shape.rope_factor + smooth))
    return np.array(factors, dtype=np.float32)


def copy_tokenizer(vocab, writer):
    """Copies every `tokenizer.*` key; gives the number of tokens."""
    tokens = 0
    for key, field in GGUFReader(vocab).fields.items():
        if not key.startswith("tokenizer."):
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
        if key == "tokenizer.ggml.tokens":
            tokens = len(field.data)
    if not tokens:
        sys.exit(f"{vocab} has no tokens: name a vocabulary of llama.cpp, such as ggml-vocab-llama-bpe.gguf")
    return tokens


def write(name, recipe, vocab, out):
    shape = SHAPES[name]
    rng = np.random.default_rng(7)
    writer = GGUFWriter(out, "llama")
    tokens = copy_tokenizer(vocab, writer)
    writer.add_name(f"{name} {recipe}, random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(131_072)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tokens)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M if recipe == "Q4_K_M" else LlamaFileType.MOSTLY_Q8_0)

    usual, better = ("Q4_K", "Q6_K") if recipe == "Q4_K_M" else ("Q8_0", "Q8_0")

    def matrix(tensor, rows, columns, kind):
        elements, size = BLOCKS[kind]
        data = blocks(kind, rows * columns // elements, rng).reshape(rows, columns // elements * size)
        writer.add_tensor(tensor, data, raw_dtype=GGMLQuantizationType[kind])

    def norm(tensor):
        writer.add_tensor(tensor, np.ones(shape.hidden, dtype=np.float32))

    matrix("token_embd.weight", tokens, shape.hidden, better if shape.tied else usual)
    norm("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", tokens, shape.hidden, better)
    writer.add_tensor("rope_freqs.weight", rope_factors(shape))
    for layer in range(shape.layers):
        of_layer = f"blk.{layer}."
        rich = better if more_bits(layer, shape.layers) else usual
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        norm(of_layer + "attn_norm.weight")
        matrix(of_layer + "attn_q.weight", queries, shape.hidden, usual)
        matrix(of_layer + "attn_k.weight", keys, shape.hidden, usual)
        matrix(of_layer + "attn_v.weight", keys, shape.hidden, rich)
        matrix(of_layer + "attn_output.weight", shape.hidden, queries, usual)
        norm(of_layer + "ffn_norm.weight")
        matrix(of_layer + "ffn_gate.weight", shape.feed_forward, shape.hidden, usual)
        matrix(of_layer + "ffn_up.weight", shape.feed_forward, shape.hidden, usual)
        matrix(of_layer + "ffn_down.weight", shape.hidden, shape.feed_forward, rich)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if len(sys.argv) != 5 or sys.argv[1] not in SHAPES or sys.argv[2] not in ("Q4_K_M", "Q8_0"):
        sys.exit(__doc__)
    name, recipe, vocab, out = sys.argv[1:]
    # Under its own name only when it is whole.
    write(name, recipe, vocab, out + ".part")
    os.replace(out + ".part", out)


if __name__ == "__main__":
    main()
