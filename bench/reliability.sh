#!/usr/bin/env bash
# The tests that take too long for .ci/run: the images, all fault tests, 200 random cases in one process, and fuzzing.
# Run it as root on a machine with Docker, or on which Docker can be started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/errors.sh
source scripts/errors.sh
# shellcheck source=scripts/native.sh
source scripts/native.sh

install
# shellcheck source=test/docker_engine.sh
docker info >/dev/null 2>&1 || source test/docker_engine.sh
for runtime in cuda cpu; do
  for api in exec invoke; do
    ./do_build.sh --runtime "$runtime" --api "$api"
  done
done
.venv/bin/python -m pytest --faults
.venv/bin/python -m bench.soak
.venv/bin/python -m bench.fuzz --seconds 300
