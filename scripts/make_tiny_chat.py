#!/usr/bin/env python3
"""Write a small chat model in GGUF, from this project's own text and nothing else.

It is a stand-in for machines that reach no model hub, so that the main job runs end to end: a real
tokenizer, a real chat template, a real end of turn, the real forward pass. It is not a language model to
talk with. What it knows is which token follows which in this project's documentation:

  logits(next | current) = output @ norm(embedding[current])

where embedding and output are the two halves of a truncated SVD of the smoothed bigram log-probabilities
(the best low-rank fit, Eckart and Young 1936). The transformer blocks in between hold small random
attention and feed-forward weights whose output projections are zero: they cost what they cost in a real
model and leave the residual stream as it is.

usage: make_tiny_chat.py OUT.gguf TEXT...        needs: numpy, tokenizers, gguf
"""

import argparse
import json
import pathlib
import re

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HEAD_DIM, CONTEXT = 32, 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentences(paths):
    """Plain sentences of Markdown files: no code, no tables, no markup."""
    for path in paths:
        text = pathlib.Path(path).read_text(encoding="utf-8")
        text = re.sub(r"```.*?```", " ", text, flags=re.S)
        for paragraph in re.split(r"\n\s*\n", text):
            if paragraph.lstrip().startswith(("|", "#", "<")):
                continue
            paragraph = re.sub(r"[`*_>#]|\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph):
                if len(sentence) > 20:
                    yield sentence.lstrip("- ")


def train_tokenizer(lines, vocabulary):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return tokenizer


def bigram_factors(tokenizer, lines, hidden, closers):
    """The two halves of the log-probabilities' best rank-`hidden` fit: [vocabulary, hidden] each.

    `closers` is the probability, mixed in after every token, of what ends a JSON string, object or list and
    the turn: a model for tests needs constrained answers that end.
    """
    size = tokenizer.get_vocab_size()
    counts = np.full((size, size), 1e-3)
    newline, end = tokenizer.token_to_id("Ċ"), tokenizer.token_to_id("<|im_end|>")
    unigram = np.zeros(size)
    for line in lines:
        ids = tokenizer.encode(line).ids
        np.add.at(counts, (ids[:-1], ids[1:]), 1.0)
        np.add.at(unigram, ids, 1.0)
        counts[newline, ids[0]] += 1.0  # a turn opens with a newline, and so with a sentence
        counts[ids[-1], end] += 2.0  # and closes after a sentence
    counts += 0.02 * unigram / unigram.sum()
    probabilities = counts / counts.sum(axis=1, keepdims=True)
    if closers:
        ends = [tokenizer.token_to_id(token) for token in ('"', "}", "]", "<|im_end|>")]
        probabilities *= 1 - closers
        probabilities[:, ends] += closers / len(ends)
    logprobs = np.log(probabilities)
    logprobs -= logprobs.mean(axis=1, keepdims=True)
    left, singular, right = np.linalg.svd(logprobs, full_matrices=False)
    root = np.sqrt(singular[: hidden - 1])
    embedding, output = left[:, : hidden - 1] * root, right[: hidden - 1].T * root
    # RMS normalization divides by the row's size. Give all rows one size with an extra column that the
    # output does not look at, and undo it in the output.
    norms = np.square(embedding).sum(axis=1)
    embedding = np.column_stack([embedding, np.sqrt(np.maximum(norms.max() - norms, 0.0))])
    output = np.column_stack([output * np.sqrt(norms.max() / hidden), np.zeros(size)])
    return embedding.astype(np.float32), output.astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("text", nargs="+")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--closers", type=float, default=0.0)
    arguments = parser.parse_args()
    hidden, layers = arguments.hidden, arguments.layers
    heads, feed_forward = hidden // HEAD_DIM, 3 * hidden
    kv_heads = max(heads // 2, 1)

    lines = list(sentences(arguments.text))
    tokenizer = train_tokenizer(lines, arguments.vocabulary)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    embedding, output = bigram_factors(tokenizer, lines, hidden, arguments.closers)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]

    writer = gguf.GGUFWriter(arguments.out, "llama")
    writer.add_name("hearth-tiny-chat")
    writer.add_description("Bigram statistics of Hearth's own documentation in the shape of a llama model.")
    writer.add_license("MIT OR Apache-2.0")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(vocabulary))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token, _ in vocabulary]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.token_to_id("<|endoftext|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    random = np.random.default_rng(0)

    def matrix(name, values):
        quantized = gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def noise(rows, columns):
        return random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)

    matrix("token_embd.weight", embedding)
    matrix("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    keys = kv_heads * HEAD_DIM
    for layer in range(layers):
        prefix = f"blk.{layer}."
        writer.add_tensor(prefix + "attn_norm.weight", np.ones(hidden, np.float32))
        matrix(prefix + "attn_q.weight", noise(hidden, hidden))
        matrix(prefix + "attn_k.weight", noise(keys, hidden))
        matrix(prefix + "attn_v.weight", noise(keys, hidden))
        matrix(prefix + "attn_output.weight", np.zeros((hidden, hidden)))
        writer.add_tensor(prefix + "ffn_norm.weight", np.ones(hidden, np.float32))
        matrix(prefix + "ffn_gate.weight", noise(feed_forward, hidden))
        matrix(prefix + "ffn_up.weight", noise(feed_forward, hidden))
        matrix(prefix + "ffn_down.weight", np.zeros((hidden, feed_forward)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{arguments.out}: {len(lines)} sentences, {len(vocabulary)} tokens")


if __name__ == "__main__":
    main()
