"""The second comparison: all-MiniLM-L6-v2 by sentence-transformers on torch, and by a running Hearth server.

scripts/bench_embeddings.py is the measurement: 1,000 texts through both in turns, in one process of torch and one
server. Here are its surroundings: the packages, which take some 5 GB and are therefore installed for this comparison
alone, the model, and the server. Requests and JSON count on Hearth's side, which has no other way in; torch is called
directly.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench_server

from .llama_cpp import checked_call
from .pairs import median_lower_bound

SCRIPTS = Path(__file__).resolve().parent.parent
MODEL = SCRIPTS.parent / "models" / "all-MiniLM-L6-v2"
REQUIREMENTS = ["sentence-transformers==6.2.*", "numpy==2.*"]
# Prints what the figures depend on.
VERSIONS = (
    "import json, torch, sentence_transformers as s; "
    "print(json.dumps({'torch': torch.__version__, 'sentence-transformers': s.__version__, "
    "'threads': torch.get_num_threads()}))"
)


def environment(cache):
    venv = cache / "venv-embeddings"
    note, wanted = venv / "requirements.txt", "\n".join(REQUIREMENTS)
    if not note.exists() or note.read_text() != wanted:
        print(f"installing {', '.join(REQUIREMENTS)} into {venv}: some minutes, 5 GB", flush=True)
        log = cache / "venv-embeddings.log"
        checked_call([sys.executable, "-m", "venv", venv], log, "making a virtual environment")
        pip = [venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        checked_call([*pip, *REQUIREMENTS], log, "installing sentence-transformers")
        note.write_text(wanted)
    return venv


def prepare(cache):
    """The interpreter that has torch; the model is in its place."""
    checked_call([SCRIPTS / "fetch_minilm.sh"], cache / "download.log", "fetching all-MiniLM-L6-v2")
    return environment(cache) / "bin/python"


def measure(hearth, cache, pairs, threads):
    """What scripts/bench_embeddings.py measured, with the ratio of each pair, their median and its lower bound."""
    python = prepare(cache)
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    versions = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True, env=environ)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--embedding-model", MODEL, "--threads", str(threads))
        with bench_server.server(hearth, folder, *arguments) as url:
            command = [python, SCRIPTS / "bench_embeddings.py", url, MODEL, str(pairs)]
            ended = subprocess.run(command, capture_output=True, text=True, env=environ)
    if ended.returncode:
        sys.exit(f"scripts/bench_embeddings.py ended with status {ended.returncode}:\n{ended.stderr[-3000:]}")
    result = json.loads(ended.stdout)
    both = zip(result["seconds"]["torch"], result["seconds"]["hearth"], strict=True)
    ratios = [torch / hearth for torch, hearth in both]
    result["versions"] = json.loads(versions.stdout.splitlines()[-1])
    result["ratio"], result["ratio_lower_95"] = statistics.median(ratios), median_lower_bound(ratios)
    result["ratio_least"], result["ratio_most"] = min(ratios), max(ratios)
    return result
