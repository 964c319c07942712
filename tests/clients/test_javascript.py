"""The official JavaScript SDK, unmodified, against the same server: `openai.test.mjs` holds the cases."""

import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import KEY

HERE = pathlib.Path(__file__).parent


def test_the_javascript_sdk(base_url):
    if shutil.which("node") is None or not (HERE / "node_modules").exists():
        pytest.skip("node or node_modules is missing: run `npm install` in tests/clients")
    ran = subprocess.run(
        ["node", "--test", "openai.test.mjs"],
        cwd=HERE, env=os.environ | {"HEARTH_BASE_URL": base_url, "HEARTH_KEY": KEY}, capture_output=True, text=True, timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
