"""The machine of a run, as far as the figures depend on it, and the Python packages that a run needs."""

import os
import pathlib
import platform
import re
import subprocess
import sys

from .llama_cpp import checked_call

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Of the virtual environment; the driver itself needs none of them.
REQUIREMENTS = ("cmake==4.*", "ninja==1.*", "gguf==0.19.*", "numpy==2.*", "matplotlib==3.*")


def physical_cores():
    """Cores that this process may use, hardware threads of one core counted once, as Hearth counts them."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        path = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(path.read_text() if path.exists() else cpu)
    return len(cores)


def environment(cache):
    """The virtual environment with what prepares and draws."""
    venv, wanted = cache / "venv", "\n".join(REQUIREMENTS)
    note = venv / "requirements.txt"
    if not note.exists() or note.read_text() != wanted:
        print(f"installing {', '.join(REQUIREMENTS)} into {venv}", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        checked_call([sys.executable, "-m", "venv", venv], cache / "venv.log", "making a virtual environment")
        checked_call(
            [venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS],
            cache / "venv.log",
            "installing Python packages",
        )
        note.write_text(wanted)
    return venv


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe():
    """What the figures depend on, as far as this process may see it."""
    listed = output_of("lscpu") or ""
    keep = (
        "Architecture",
        "Model name",
        "CPU(s)",
        "Thread(s) per core",
        "Core(s) per socket",
        "Socket(s)",
        "CPU max MHz",
        "L1d cache",
        "L2 cache",
        "L3 cache",
        "Hypervisor vendor",
        "Flags",
    )
    found = dict(re.findall(r"^\s*([^:\n]+):\s+(.*)$", listed, re.MULTILINE))
    governor = pathlib.Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    memory = pathlib.Path("/proc/meminfo")
    total = re.search(r"MemTotal:\s+(\d+)", memory.read_text()) if memory.exists() else None
    return {
        "lscpu": {name: found[name] for name in keep if name in found},
        "governor": governor.read_text().strip() if governor.exists() else "not visible",
        "kernel": f"{platform.system()} {platform.release()}",
        "memory_mib": int(total.group(1)) // 1024 if total else None,
    }
