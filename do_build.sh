#!/usr/bin/env bash
# Builds the container of each task.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/containers.sh
source scripts/containers.sh

usage() {
  cat <<'EOF'
usage: ./do_build.sh [--tag NAME] [--base-image IMAGE] [--runtime cuda|cpu] [--api exec|invoke]
                     [--recipe NAME|FILE] [task1|task2|all]

  --tag NAME          the image's name, for one task (default pantherseg-task1, pantherseg-task2)
  --base-image IMAGE  image of Debian with Python 3.11 (default $BASE_IMAGE, else python:3.11-slim-bookworm)
  --runtime RUNTIME   cuda (default): torch with its CUDA libraries, also runs on the CPU;
                      cpu: no torch, a tenth of the size, named pantherseg-task1-cpu, pantherseg-task2-cpu
  --api API           how the platform runs it: exec (default) starts it for each case; invoke starts it once as a server,
                      named pantherseg-task1-invoke or pantherseg-task1-cpu-invoke
  --recipe RECIPE     another recipe than the task's own, for one task: a file, or one of Task1/recipes or Task2/recipes by
                      its name; the image is named after it, such as pantherseg-system_a_task1
  task                task1, task2 or all (default)

DOCKER_BUILD_OPTIONS may hold further options for docker build, such as "--network host".
EOF
}

parse_shared_arguments "$@"
require_engine
for task in "${tasks[@]}"; do
  build_image "$task"
done
