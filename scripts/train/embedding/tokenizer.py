#!/usr/bin/env python3
"""Train the embedding model's vocabulary: lower-cased WordPiece, as BERT has it, on the training texts.

A vocabulary of its own, smaller than BERT's: the table of words is most of a small model, and a word that the texts
hardly show learns little. Only the training split is read, so the held-out documents are spelled as new ones are.

usage: tokenizer.py [--data target/train]        reads embedding/groups.jsonl, writes embedding/tokenizer.json
"""

import argparse
import pathlib

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from model import Shape
from teacher import read_groups

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("target/train"))
    parser.add_argument("--vocabulary", type=int, default=Shape.vocabulary)
    arguments = parser.parse_args()

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=arguments.vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=[chr(code) for code in range(33, 127)],
        limit_alphabet=200,
        min_frequency=3,
        show_progress=False,
    )
    folder = arguments.data / "embedding"
    texts = [f"{group['topic']}\n{group['documents'][0]}" for group in read_groups(folder)]
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_truncation(Shape.positions)
    tokenizer.save(str(folder / "tokenizer.json"))

    sample = texts[:: max(1, len(texts) // 2000)]
    words = sum(len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) for text in sample)
    tokens = [token for text in sample for token in tokenizer.encode(text, add_special_tokens=False).tokens]
    print(f"{tokenizer.get_vocab_size()} tokens; {len(tokens) / words:.2f} tokens per word, {tokens.count('[UNK]') / len(tokens):.3%} unknown")


if __name__ == "__main__":
    main()
