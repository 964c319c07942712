"""llama.cpp for the comparison: its source out of a Python package, its two benchmarks built for this machine, and how
they are run.

The package llama-cpp-python carries the source of llama.cpp, tools included, pinned here by version and sha256. cmake
and ninja come from Python packages as well, so nothing needs to be installed but a C++ compiler. `llama-bench`
measures prefill and one stream, `llama-batched-bench` several streams; both are run as their authors wrote them, but for
one statement that GCC 12 compiles wrongly (REPAIR). What is measured, and in which order, is left to scripts/bench_peers.
"""

import hashlib
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
TOOLS = ("llama-bench", "llama-batched-bench")
# For this processor, optimized, and without what a benchmark does not need: tests, the server with its pages, HTTPS.
CMAKE_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DGGML_CCACHE=OFF",
]
# The intrinsic of GCC 12 tells the compiler that 8 bytes of AMX's 64 bytes of configuration are read. Optimized, the others
# are never written, and llama.cpp's first product of a prompt ends by an illegal instruction. This reads them all.
REPAIR = (
    "ggml/src/ggml-cpu/amx/mmq.cpp",
    "    _tile_loadconfig(&tc);\n",
    '    asm volatile("ldtilecfg %0" : : "m"(tc));\n',
)
# Prints what llama.cpp says of the instruction sets that it uses; its benchmarks do not.
SYSTEM_INFO = '#include <cstdio>\n#include "llama.h"\nint main() { std::puts(llama_print_system_info()); }\n'
# All that it is screened with. The first is its default.
SETTINGS = [{"repack": repack, "flash_attention": flash} for repack in (1, 0) for flash in (0, 1)]


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checked_call(command, log, what):
    """Runs a command of the preparation; its output goes to `log`, and its end is shown if it fails."""
    with open(log, "w") as out:
        status = subprocess.run([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT).returncode
    if status:
        lines = pathlib.Path(log).read_text(errors="replace").splitlines()
        sys.exit("\n".join([*lines[-25:], "", f"{what} failed with status {status}; the whole output is in {log}"]))


def download(python, requirements, choice, directory, cache):
    """Downloads packages without their dependencies; `choice` is pip's option for wheels or sources."""
    directory.mkdir(parents=True, exist_ok=True)
    pip = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", directory]
    checked_call([*pip, *choice, *requirements], cache / "download.log", f"downloading {' '.join(requirements)}")


def unpacked(cache, python):
    """The package's folder in the cache; downloaded, checked and unpacked if it is not there."""
    # Not the name of before the repair, so that an older cache is not taken for it.
    folder = cache / "source-repaired" / f"llama_cpp_python-{VERSION}"
    if folder.exists():
        return folder
    downloads = cache / "downloads"
    print(f"downloading {PACKAGE} {VERSION}", flush=True)
    # Only this package as source: pip would compile cmake, which building it needs.
    download(python, [f"{PACKAGE}=={VERSION}"], ["--no-binary", PACKAGE], downloads, cache)
    archive = downloads / f"llama_cpp_python-{VERSION}.tar.gz"
    if (found := sha256_of(archive)) != SHA256:
        sys.exit(f"{archive} has the sha256 {found} instead of {SHA256}: delete it and run this again")
    part = cache / "source.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter="data")
    file, wrong, right = REPAIR
    file = part / folder.name / "vendor/llama.cpp" / file
    code = file.read_text()
    if code.count(wrong) != 1:
        sys.exit(f"{file.name} of {PACKAGE} {VERSION} has changed: see REPAIR in {__file__}")
    file.write_text(code.replace(wrong, right))
    folder.parent.mkdir(exist_ok=True)
    (part / folder.name).rename(folder)
    shutil.rmtree(part)
    return folder


class LlamaCpp:
    """A built llama.cpp."""

    def __init__(self, cache, venv):
        self.package = unpacked(cache, venv / "bin" / "python")
        self.source = self.package / "vendor" / "llama.cpp"
        self.build = cache / f"build-{VERSION}-repaired"
        log = cache / "build.log"
        if not all((self.build / "bin" / tool).exists() for tool in TOOLS):
            print(f"building llama.cpp in {self.build}: some minutes (the output is in {log})", flush=True)
            cmake = venv / "bin" / "cmake"
            checked_call(
                [
                    cmake,
                    "-S",
                    self.source,
                    "-B",
                    self.build,
                    "-G",
                    "Ninja",
                    f"-DCMAKE_MAKE_PROGRAM={venv / 'bin' / 'ninja'}",
                    *CMAKE_OPTIONS,
                ],
                log,
                "configuring llama.cpp",
            )
            checked_call([cmake, "--build", self.build, "--target", *TOOLS], log, "building llama.cpp")
        self.info = self._system_info(cache)

    def _system_info(self, cache):
        program = self.build / "system-info"
        if not program.exists():
            code = self.build / "system-info.cpp"
            code.write_text(SYSTEM_INFO)
            libraries = [self.build / "src" / "libllama.a"]
            libraries += [self.build / "ggml" / "src" / f"lib{name}.a" for name in ("ggml", "ggml-cpu", "ggml-base")]
            checked_call(
                [
                    "c++",
                    code,
                    "-o",
                    program,
                    f"-I{self.source}/include",
                    f"-I{self.source}/ggml/include",
                    *libraries,
                    "-fopenmp",
                    "-lpthread",
                    "-ldl",
                ],
                cache / "system-info.log",
                "building the program that prints system_info",
            )
        return subprocess.run([program], capture_output=True, text=True, check=True).stdout.strip()

    def describe(self):
        """Where it comes from and how it was built, for the record."""
        changes = (self.package / "CHANGELOG.md").read_text()
        stated = re.search(r"update llama\.cpp to ggml-org/llama\.cpp@(\w+)", changes)
        cached = (self.build / "CMakeCache.txt").read_text()
        compiler = re.search(r"CMAKE_CXX_COMPILER:\w+=(.*)", cached)
        version = (
            subprocess.run([compiler.group(1), "--version"], capture_output=True, text=True).stdout.splitlines()[0]
            if compiler
            else None
        )
        return {
            "package": f"{PACKAGE} {VERSION}",
            "sha256": SHA256,
            "repair": dict(zip(("file", "wrong", "right"), REPAIR)),
            "commit": stated.group(1) if stated else None,
            "cmake_options": CMAKE_OPTIONS,
            "compiler": version,
            "system_info": self.info,
        }

    def command(self, model, work, setting):
        """The command for one measure, and the function that reads its samples in tokens per second."""
        flash = "on" if setting["flash_attention"] else "off"
        common = ["-m", model, "-t", work["threads"], "-fa", flash]
        if work["streams"] == 1:
            # It warms up by itself.
            lengths = ["-p", work["prompt"], "-n", work["decode"], "-d", work["depth"], "-r", work["repetitions"]]
            how = ["--repack", setting["repack"], "-o", "json"]
            return [self.build / "bin" / "llama-bench", *common, *lengths, *how], read_bench
        # Its own warm-up is 16 tokens of one sequence: the first round does not count, as in `hearth bench`.
        rounds = ",".join([str(work["streams"])] * (work["repetitions"] + 1))
        # A sequence's share of the context is a multiple of 256.
        context = work["streams"] * 256 * math.ceil((work["decode"] + 1) / 256)
        lengths = ["-c", context, "-npp", 1, "-ntg", work["decode"], "-npl", rounds]
        how = ["--repack" if setting["repack"] else "--no-repack", "--output-format", "jsonl"]
        return [self.build / "bin" / "llama-batched-bench", *common, *lengths, *how], read_batched_bench


def read_bench(output):
    return json.loads(output)[0]["samples_ts"]


def read_batched_bench(output):
    return [json.loads(line)["speed_tg"] for line in output.splitlines() if line.startswith("{")][1:]
