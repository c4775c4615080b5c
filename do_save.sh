#!/usr/bin/env bash
# Writes the files to upload: the image and the models of each task.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/containers.sh
source scripts/containers.sh

usage() {
  cat <<'EOF'
usage: ./do_save.sh [--tag NAME] [--runtime cuda|cpu] [--api exec|invoke] [--recipe NAME|FILE] [--model DIR]
                    [task1|task2|all]

  --tag NAME   the image, for one task (default pantherseg-task1, pantherseg-task2; built if it does not exist)
  --runtime    cuda (default) or cpu, as for ./do_build.sh
  --api        exec (default) or invoke, as for ./do_build.sh
  --recipe     another recipe than the task's own, as for ./do_build.sh
  --model DIR  folder of models (default weights/own if it has a folder for the task, else weights/demo)
  task         task1, task2 or all (default)

Writes build/<image>.tar.gz, build/<image>.cdx.json with the list of packages installed in it (CycloneDX), and
build/<image>-model.tar.gz, whose bytes depend only on the models.
EOF
}

parse_shared_arguments "$@"
require_engine
mkdir -p build

# Prints the size and checksum of a finished file, and where to upload it.
announce() {
  local size sum
  size=$(du --apparent-size --block-size=1000000 "$1" | cut -f1)
  sum=$(sha256sum "$1" | cut -d' ' -f1)
  printf '%s  %s MB  sha256 %s\n    upload it as %s\n' "$1" "$size" "$sum" "$2"
}

# Prints the common prefix of a task's files.
target_of() {
  local image
  image=$(image_of "$1")
  echo "build/${image//[:\/]/-}"
}

# Builds a task's image if it does not exist; one that does must be for the contract that was asked for.
ensure_image() {
  local image contract
  image=$(image_of "$1")
  docker image inspect "$image" >/dev/null 2>&1 || build_image "$1"
  contract=$(contract_of "$image")
  [[ $contract == "$api" ]] || fail "$image: expected an image for $api, found one for $contract; give another --tag or --api"
}

remove_parts() {
  local task target
  for task in "${tasks[@]}"; do
    target=$(target_of "$task")
    rm -rf "$target.tar.gz.part" "$target.cdx.json.part" "$target-model.tar.gz.part" "$target-model.tar.gz.part.packed"
  done
}
trap remove_parts EXIT

# The models of all tasks first, so that faulty ones are refused before minutes are spent on an image.
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
  echo "$target.cdx.json  packages installed in the image (CycloneDX)"
done
