#!/usr/bin/env python3
"""Embeds 1,000 texts of 20 to 400 tokens by sentence-transformers on torch and through a running Hearth server, in
turn, and prints the medians and their ratio as JSON.

usage: bench_embeddings.py BASE_URL MODEL_DIRECTORY [REPETITIONS]
The server's embedding model must be the one in MODEL_DIRECTORY, under that directory's name.
      needs: sentence-transformers, numpy
"""

import json
import pathlib
import random
import statistics
import sys
import time
import urllib.request

import numpy as np
from sentence_transformers import SentenceTransformer

WORDS = (
    "the server reads a model file and answers questions about documents that people keep on their own machines with "
    "no network while tokens stream from one thread which owns the weights and every other part holds a handle on it"
).split()
TEXTS, AT_A_TIME = 1000, 64


def main():
    url, directory = sys.argv[1:3]
    repetitions = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    name = pathlib.Path(directory).name
    rng = random.Random(7)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 400))) for _ in range(TEXTS)]
    reference = SentenceTransformer(directory, device="cpu")

    def with_torch():
        return reference.encode(texts, batch_size=32, show_progress_bar=False)

    def with_hearth():
        vectors = []
        for first in range(0, TEXTS, AT_A_TIME):
            body = {"model": name, "input": texts[first : first + AT_A_TIME], "truncate": True}
            request = urllib.request.Request(
                url + "/v1/embeddings", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            data = json.load(urllib.request.urlopen(request))["data"]
            vectors.extend(item["embedding"] for item in data)
        return np.array(vectors, dtype=np.float32)

    seconds = {"torch": [], "hearth": []}
    for repetition in range(repetitions + 1):
        for way, embed in (("torch", with_torch), ("hearth", with_hearth)):
            started = time.perf_counter()
            vectors = embed()
            if repetition:
                seconds[way].append(time.perf_counter() - started)
            if way == "torch":
                expected = vectors
    cosine = float(np.min(np.sum(expected * vectors, axis=1) / np.linalg.norm(expected, axis=1)))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    print(json.dumps({
        "texts": TEXTS,
        "seconds": seconds,
        "texts_per_second": {way: TEXTS / value for way, value in medians.items()},
        "ratio_to_torch": medians["torch"] / medians["hearth"],
        "smallest_cosine": cosine,
    }, indent=2))


if __name__ == "__main__":
    main()
