"""The chat model's tokenizer: byte-level BPE with single digits, as Hearth's family "smollm" cuts text.

usage: tokenizer.py [DATA]      (default: target/train; writes DATA/chat/tokenizer.json)
"""

import json
import pathlib
import random
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import chat_format
from invented import Inventor

VOCABULARY = 4096


def training_text(data):
    rng = random.Random(1)
    inventor = Inventor(rng)
    for line in open(data / "passages.jsonl"):
        passage = json.loads(line)
        if passage["split"] == "train":
            yield f"{passage['title']}: {passage['heading']}\n{passage['text']}\n\n"
        if rng.random() < 0.3:
            passages, questions = inventor.reading(3, 3, 3)
            yield chat_format.rag_prompt(passages, "\n".join(question for question, *_ in questions))


def main():
    data = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/train")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        training_text(data),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=chat_format.SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    (data / "chat").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(data / "chat/tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
