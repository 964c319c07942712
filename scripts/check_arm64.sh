#!/usr/bin/env bash
# Compiles the kernels and their tests for 64-bit ARM, without an ARM machine: the compiler's library for ARM and a linker are
# Debian packages; those that are missing are installed. The tests are not run: copy the program that is named in the end to an
# ARM machine for that.
#
# usage: scripts/check_arm64.sh
# needs: Debian 12 or later; root, if packages are missing
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
  dpkg --add-architecture arm64
  apt-get update -q
  apt-get install -y -q --no-install-recommends "${packages[@]}"
fi

# A folder of its own: the compiler is another one.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/arm64
export CARGO_TARGET_DIR
export RUSTC=/usr/bin/rustc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
exec cargo test --locked --target aarch64-unknown-linux-gnu -p hearth-kernels --lib --no-run
