#!/usr/bin/env bash
# Runs the kernels' tests compiled for 64-bit ARM, under emulation. Debian packages have what that takes: a compiler, its library
# for ARM, a linker and an emulator; those that are missing are installed. How fast the kernels are on ARM, it cannot tell.
#
# usage: scripts/test_arm64.sh [FILTER...]
# needs: Debian 12 or later; root, if packages are missing
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
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
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
exec cargo test --locked --target aarch64-unknown-linux-gnu -p hearth-kernels --lib -- "$@"
