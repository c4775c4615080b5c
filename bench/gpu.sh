#!/usr/bin/env bash
# Benchmarks inference on a GPU in a fresh checkout: installs the environment and runs `python -m bench.gpu` with these arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/errors.sh
source scripts/errors.sh
# shellcheck source=scripts/native.sh
source scripts/native.sh

install
.venv/bin/python -m bench.gpu "$@"
