#!/usr/bin/env bash
# Measures the GPU path from a fresh checkout: installs what is missing, then `python -m bench.gpu` with these arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/errors.sh
source scripts/errors.sh
# shellcheck source=scripts/native.sh
source scripts/native.sh

install
.venv/bin/python -m bench.gpu "$@"
