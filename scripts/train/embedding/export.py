#!/usr/bin/env python3
"""Write a trained model as GGUF: matrices as Q8_0, the position table as F16, norms and biases as F32.

The architecture is `bert`, as llama.cpp's converter writes it, so that every program that reads its files reads this
one. WordPiece is stored in that converter's spelling: `play` as `▁play`, `##ing` as `ing`.

usage: export.py [MODEL_FOLDER] [OUT]        (default: target/train/embedding/model, models/hearth-embed.gguf)
"""

import argparse
import pathlib

import gguf
import numpy as np

from model import load

LICENCE = "MIT OR Apache-2.0"


def add_metadata(writer, shape):
    writer.add_name("hearth-embed")
    writer.add_description("Embeddings of English technical text; trained from scratch on the outputs of all-MiniLM-L6-v2")
    writer.add_license(LICENCE)
    writer.add_languages(["en"])
    writer.add_tags(["sentence-similarity", "feature-extraction"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.norm_epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def add_vocabulary(writer, tokenizer):
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    special = [token.startswith("[") and token.endswith("]") and len(token) > 2 for token in tokens]
    spelled = [
        token if control else token[2:] if token.startswith("##") else f"\u2581{token}"
        for token, control in zip(tokens, special)
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(spelled)
    writer.add_token_types([gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL for control in special])
    writer.add_token_type_count(1)
    writer.add_bos_token_id(tokenizer.token_to_id("[CLS]"))
    writer.add_sep_token_id(tokenizer.token_to_id("[SEP]"))
    writer.add_eos_token_id(tokenizer.token_to_id("[SEP]"))
    writer.add_unk_token_id(tokenizer.token_to_id("[UNK]"))
    writer.add_pad_token_id(tokenizer.token_to_id("[PAD]"))
    writer.add_mask_token_id(tokenizer.token_to_id("[MASK]"))


def add_tensors(writer, model):
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name == "position_embd.weight":
            writer.add_tensor(name, values.astype(np.float16))
        elif values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    # There are no pairs of texts and so no types, but readers of BERT may look for the table.
    writer.add_tensor("token_types.weight", np.zeros((1, model.shape.hidden), np.float32))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="target/train/embedding/model")
    parser.add_argument("out", nargs="?", type=pathlib.Path, default="models/hearth-embed.gguf")
    arguments = parser.parse_args()
    out = arguments.out
    model, tokenizer = load(arguments.folder)
    unfinished = out.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "bert")
    add_metadata(writer, model.shape)
    add_vocabulary(writer, tokenizer)
    add_tensors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {parameters / 1e6:.2f} M parameters, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
