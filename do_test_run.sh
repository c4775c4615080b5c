#!/usr/bin/env bash
# Runs the sample case of each task as the platform would, and scores the mask.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/containers.sh
source scripts/containers.sh
# shellcheck source=scripts/native.sh
source scripts/native.sh
# shellcheck source=scripts/platform.sh
source scripts/platform.sh

usage() {
  cat <<'EOF'
usage: ./do_test_run.sh [--native] [--model DIR] [--tag NAME] [--runtime cuda|cpu] [--api exec|invoke]
                        [--recipe NAME|FILE] [--no-build] [--no-model] [--hardened] [--user UID:GID] [task1|task2|all]

  --native        run without Docker, in .venv in the project's root, which is created on first use; this is also the
                  fallback if no Docker engine is running
  --model DIR     folder of models with one for each role (task1, task2, localizer), or one nnU-Net model folder
                  (default weights/own if it has a folder for the task, else weights/demo)
  --tag NAME      the image, for one task (default pantherseg-task1, pantherseg-task2); it is built first
  --runtime       cuda (default) or cpu, as for ./do_build.sh
  --api           exec (default) or invoke, as for ./do_build.sh; the image's label decides how it is run: for invoke one
                  container runs the sample case several times
  --recipe        another recipe than the task's own, as for ./do_build.sh; needs Docker
  --no-build      do not build the image first
  --no-model      leave /opt/ml/model empty, so that the demo models in the image are used
  --hardened      run with --read-only, --cap-drop ALL and no-new-privileges
  --user UID:GID  run as this user instead of the image's
  task            task1, task2 or all (default)

The masks are written to test/output/<task>/images/pancreatic-tumor-segmentation/; results.json, scores and a picture
to test/output/<task>/, and a page with all cases to test/output/report.html. PYTHON is the interpreter that creates .venv (default python3; 3.11 or later).
EOF
}

native=false
build=true
with_model=true
hardened=false
extra=()
while (($#)); do
  shared_argument "$@"
  if ((!taken)); then
    taken=1
    case $1 in
      --native) native=true ;;
      --no-build) build=false ;;
      --no-model) with_model=false ;;
      --hardened)
        hardened=true
        extra+=(--read-only --tmpfs /tmp:mode=1777 --cap-drop ALL --security-opt no-new-privileges)
        ;;
      --user)
        (($# > 1)) || fail "--user: expected UID:GID, found nothing" 2
        extra+=(--user "$2")
        taken=2
        ;;
      *) usage >&2 && fail "$1: expected an option above" 2 ;;
    esac
  fi
  shift "$taken"
done
check_arguments

# Runs the pantherseg command: natively, or in the task's image with the project's test folder mounted.
tool() {
  local task=$1
  shift
  if $native; then
    .venv/bin/pantherseg "$@"
  else
    docker run --rm --network none --user "$(id -u):$(id -g)" --entrypoint python --volume "$PWD/test:/opt/pantherseg/test" \
      "$(image_of "$task")" -m pantherseg "$@"
  fi
}

run_native() {
  local task=$1 output=$2 models=()
  [[ -z $weights && ! -d $OWN_WEIGHTS/$task ]] || models=(--model "$(weights_of "$task")")
  rm -rf "$output"
  local began=$SECONDS
  .venv/bin/python "${task/task/Task}/inference.py" --input "test/input/$task" --output "$output" "${models[@]}"
  seconds=$((SECONDS - began))
}

# Checks, draws and scores a task's mask, and adds a line with this title to the summary.
score() {
  local task=$1 output=$2 title=$3 mask image reference
  mask=$(echo "$output"/images/pancreatic-tumor-segmentation/*.mha)
  image=$(echo "test/input/$task"/images/*/"$(basename "$mask")")
  reference=test/reference/$task/$(basename "$mask")
  tool "$task" check output "$output" --task "${task#task}" --job "test/input/$task"
  tool "$task" report "$image" "$mask" "$output/picture.png" --references "$reference"
  tool "$task" evaluate "$mask" "$reference" --json "$output/scores.json" >"$output/scores.txt"
  local dice memory
  dice=$(figure dice "$output/scores.json")
  memory=$(figure peak_memory_mb "$output/results.json")
  summary+=("$(printf '%s: Dice %.3f, %s s, %s MB  %s' "$title" "$dice" "$seconds" "$memory" "$mask")")
}

# Prints the first number with this key in a JSON file that has one key per line.
figure() {
  sed -n "s/^ *\"$1\": \([0-9.]*\),*$/\1/p" "$2" | head -n 1
}

# Exit normally when interrupted, so that the exit traps remove what was created.
trap 'exit 130' INT
trap 'exit 143' TERM
if ! $native && ! engine_answers; then
  echo "no Docker engine is running: running natively"
  native=true
fi
! $native || [[ -z $recipe ]] || fail "--recipe: expected a Docker engine; without one, use pantherseg predict --recipe" 2
! $native || [[ $api == exec ]] || fail "--api $api: expected a Docker engine, because only an image is run in this way" 2
summary=()
if $native; then
  install
fi
for task in "${tasks[@]}"; do
  $native || ! $build || build_image "$task"
  echo "== $task"
  if $native; then
    run_native "$task" "test/output/$task"
    score "$task" "test/output/$task" "$task"
  else
    run_container "$task" "test/output/$task"
  fi
done
# One page of all cases of this run.
only=
((${#tasks[@]} > 1)) || only=/${tasks[0]}
tool "${tasks[0]}" report "test/input$only" "test/output$only" test/output/report.html --references "test/reference$only"
printf '%s\n' "${summary[@]}"
echo "report: test/output/report.html, to be opened in a browser"
