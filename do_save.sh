#!/usr/bin/env bash
# Writes what is uploaded: the image and the models of each task.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/containers.sh
source scripts/containers.sh

usage() {
  cat <<'EOF'
usage: ./do_save.sh [--tag NAME] [--runtime cuda|cpu] [--model DIR] [task1|task2|all]

  --tag NAME   the image, for one task (default pantherseg-task1, pantherseg-task2; built if it is not there)
  --runtime    which of the images, as ./do_build.sh --runtime (default cuda)
  --model DIR  folder of models (default weights/own if it has the task's, else weights/demo)
  task         task1, task2 or all (default)

Writes build/<image>.tar.gz, build/<image>.cdx.json with what is installed in it (CycloneDX), and
build/<image>-model.tar.gz, which has the same bytes for the same models.
EOF
}

parse_shared_arguments "$@"
require_engine
mkdir -p build

# Prints size and checksum of a file that is ready, and where it is uploaded.
announce() {
  local size sum
  size=$(du --apparent-size --block-size=1000000 "$1" | cut -f1)
  sum=$(sha256sum "$1" | cut -d' ' -f1)
  printf '%s  %s MB  sha256 %s\n    upload it as %s\n' "$1" "$size" "$sum" "$2"
}

# Prints the beginning of the names of a task's files.
target_of() {
  local image
  image=$(image_of "$1")
  echo "build/${image//[:\/]/-}"
}

ensure_image() {
  docker image inspect "$(image_of "$1")" >/dev/null 2>&1 || build_image "$1"
}

remove_parts() {
  local task target
  for task in "${tasks[@]}"; do
    target=$(target_of "$task")
    rm -rf "$target.tar.gz.part" "$target.cdx.json.part" "$target-model.tar.gz.part" "$target-model.tar.gz.part.packed"
  done
}
trap remove_parts EXIT

# Every task's models first: what could not be run is refused before minutes go into an image.
for task in "${tasks[@]}"; do
  [[ -x .venv/bin/pantherseg ]] || ensure_image "$task"
  pack_model "$task" "$(target_of "$task")-model.tar.gz.part"
done
for task in "${tasks[@]}"; do
  target=$(target_of "$task")
  ensure_image "$task"
  echo "== saving $(image_of "$task")"
  list_contents "$task" "$target.cdx.json.part"
  docker save "$(image_of "$task")" | gzip --fast --no-name >"$target.tar.gz.part"
  mv "$target.cdx.json.part" "$target.cdx.json"
  mv "$target.tar.gz.part" "$target.tar.gz"
  mv "$target-model.tar.gz.part" "$target-model.tar.gz"
  announce "$target.tar.gz" "the algorithm's container image"
  announce "$target-model.tar.gz" "the algorithm's model"
  echo "$target.cdx.json  what is installed in the image (CycloneDX)"
done
