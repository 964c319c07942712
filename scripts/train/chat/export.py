"""Write a checkpoint of the chat model as a GGUF file, Q8_0 with norms in F32.

usage: export.py CHECKPOINT OUT.gguf [--data target/train] [--type Q8_0|F32] [--context 2048]
"""

import argparse
import json
import pathlib

import gguf
import numpy
import torch

import chat_format
from model import Config


def interleaved(weight, heads):
    """Rows of a head for rotation of neighbours, which is GGUF's order for llama, from rotation of halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors(state, config):
    state = {name: value.float().numpy() for name, value in state.items()}
    yield "token_embd.weight", state["embedding.weight"]
    yield "output_norm.weight", state["output_norm.weight"]
    for i in range(config.layers):
        block = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"blocks.{i}.")}
        query, key, value = numpy.split(block["query_key_value.weight"], 3)
        gate, up = numpy.split(block["gate_up.weight"], 2)
        yield f"blk.{i}.attn_norm.weight", block["attention_norm.weight"]
        yield f"blk.{i}.attn_q.weight", interleaved(query, config.heads)
        yield f"blk.{i}.attn_k.weight", interleaved(key, config.heads)
        yield f"blk.{i}.attn_v.weight", value
        yield f"blk.{i}.attn_output.weight", block["attention_output.weight"]
        yield f"blk.{i}.ffn_norm.weight", block["feed_forward_norm.weight"]
        yield f"blk.{i}.ffn_gate.weight", gate
        yield f"blk.{i}.ffn_up.weight", up
        yield f"blk.{i}.ffn_down.weight", block["down.weight"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--context", type=int, default=2048)
    options = parser.parse_args()

    checkpoint = torch.load(options.checkpoint)
    config = Config(**checkpoint["config"])
    tokenizer = json.load(open(options.data / "chat/tokenizer.json"))
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    assert [i for _, i in vocabulary] == list(range(config.vocabulary))
    ids = dict(vocabulary)

    writer = gguf.GGUFWriter(options.out, "llama")
    writer.add_name("hearth-chat")
    writer.add_description(
        "A small reader: it answers from given passages with their own sentences. Trained from scratch for Hearth."
    )
    writer.add_license("MIT OR Apache-2.0")
    writer.add_size_label(f"{sum(v.numel() for v in checkpoint['model'].values()) / 1e6:.1f}M")
    writer.add_languages(["en"])
    writer.add_context_length(options.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_vocab_size(config.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if options.type == "Q8_0" else gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if token in chat_format.SPECIAL_TOKENS else gguf.TokenType.NORMAL
            for token, _ in vocabulary
        ]
    )
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(ids[chat_format.END])
    writer.add_eot_token_id(ids[chat_format.END])
    writer.add_pad_token_id(ids[chat_format.PADDING])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_format.CHAT_TEMPLATE)
    for name, value in tensors(checkpoint["model"], config):
        if value.ndim == 2 and options.type == "Q8_0":
            value = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, value, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, value.astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(
        f"{options.out}: {pathlib.Path(options.out).stat().st_size} bytes, "
        f"step {checkpoint['step']}, {checkpoint['tokens']} tokens"
    )


if __name__ == "__main__":
    main()
