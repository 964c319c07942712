#!/usr/bin/env python3
"""Measures hnswlib, usearch and faiss on the vectors that `hearth bench index` indexes, one thread, in the same run, and
has it draw all of them: recall@10 against queries per second.

usage: bench_index.py OUT [HEARTH [BENCH_ARGUMENTS...]]
       BENCH_ARGUMENTS go to `hearth bench index`, such as --count 100000 or --vectors FILE.npy
needs: numpy, hnswlib, usearch, faiss-cpu
"""

import json
import pathlib
import subprocess
import sys
import time

import faiss
import hnswlib
import numpy as np
import usearch.index

LIMIT, LINKS, BUILD_CANDIDATES = 10, 16, 200
CANDIDATES = [16, 32, 64, 128, 256, 512]
BUILD_THREADS = 2  # as many as Hearth builds with on four cores


def with_hnswlib(vectors):
    index = hnswlib.Index("cosine", vectors.shape[1])
    index.init_index(len(vectors), BUILD_CANDIDATES, LINKS)
    index.add_items(vectors, num_threads=BUILD_THREADS)

    def search(query, candidates):
        index.set_ef(candidates)
        return index.knn_query(query[None], LIMIT, num_threads=1)[0][0]

    return search


def with_usearch(vectors):
    index = usearch.index.Index(
        ndim=vectors.shape[1], metric="cos", dtype="f32", connectivity=LINKS, expansion_add=BUILD_CANDIDATES
    )
    index.add(np.arange(len(vectors)), vectors, threads=BUILD_THREADS)

    def search(query, candidates):
        index.expansion_search = candidates
        return index.search(query, LIMIT, threads=1).keys

    return search


def with_faiss(vectors):
    faiss.omp_set_num_threads(BUILD_THREADS)
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_CANDIDATES
    index.add(vectors)
    faiss.omp_set_num_threads(1)

    def search(query, candidates):
        index.hnsw.efSearch = candidates
        return index.search(query[None], LIMIT)[1][0]

    return search


def main():
    out = pathlib.Path(sys.argv[1])
    hearth = sys.argv[2] if len(sys.argv) > 2 else "target/release/hearth"
    arguments = sys.argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    command = [hearth, "bench", "index", "--limit", str(LIMIT), "--candidates", ",".join(map(str, CANDIDATES))]
    subprocess.run([*command, *arguments, "--save", out, "--output", out / "first.json"], check=True)
    vectors, queries = (np.load(out / name) for name in ("vectors.npy", "queries.npy"))
    vectors, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, queries))
    # One as near as the tenth is right: of equal vectors any will do.
    tenth = np.concatenate([-np.sort(-(part @ vectors.T), axis=1)[:, LIMIT - 1] for part in np.array_split(queries, 16)])

    curves = []
    for name, build in (("hnswlib", with_hnswlib), ("usearch", with_usearch), ("faiss", with_faiss)):
        began = time.perf_counter()
        search = build(vectors)
        print(f"{name}: built in {time.perf_counter() - began:.1f} s", flush=True)
        points = []
        for candidates in CANDIDATES:
            for query in queries[: len(queries) // 10]:
                search(query, candidates)
            began, rounds = time.perf_counter(), 0
            while time.perf_counter() - began < 0.5:
                found = [search(query, candidates) for query in queries]
                rounds += 1
            rate = rounds * len(queries) / (time.perf_counter() - began)
            near = [np.sum(vectors[np.asarray(keys, dtype=np.int64)] @ query >= least - 1e-6)
                    for keys, query, least in zip(found, queries, tenth)]
            recall = float(np.mean(np.minimum(near, LIMIT) / LIMIT))
            points.append({"candidates": candidates, "recall": recall, "queries_per_second": rate})
            print(f"  {candidates:4} candidates: recall {recall:.4f}, {rate:.0f} queries/s", flush=True)
        curves.append({"name": name, "points": points})
    (out / "others.json").write_text(json.dumps(curves, indent=2) + "\n")
    files = ["--vectors", out / "vectors.npy", "--queries", out / "queries.npy", "--beside", out / "others.json"]
    subprocess.run([*command, *files, "--output", out / "hearth.json", "--plot", out / "recall.svg"], check=True)


if __name__ == "__main__":
    main()
