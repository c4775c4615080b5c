#!/usr/bin/env bash
# Makes the demo models: phantoms, the three trainings, and the calibration. Needs .venv (./do_test_run.sh --native makes it).
#
#   weights/demo/make.sh [FOLDER [DEVICES]]
#
# With a folder, phantoms and nnU-Net's files stay there, and a second run goes on where the first was interrupted.
# DEVICES are those of `pantherseg train`, by default the CPU, which takes hours. Folds this small leave most of a GPU
# free, so that cuda:0,cuda:0,cuda:0,cuda:0,cuda:0 trains all five beside each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=${1:-$(mktemp -d)}
devices=${2:-cpu}
[[ $# -gt 0 ]] || trap 'rm -rf "$work"' EXIT
# With more threads than free cores, threads that wait busily slow each other down.
export OMP_WAIT_POLICY=PASSIVE

# Makes phantoms, ten at a time on each core: phantoms FOLDER FIRST_SEED LAST_SEED OPTIONS...
phantoms() {
  local folder=$1 first=$2 last=$3
  shift 3
  seq "$first" 10 "$last" |
    xargs -P "$(nproc)" -I SEED .venv/bin/pantherseg phantom "$folder" --cases 10 --seed SEED "$@" >/dev/null
}

train() {
  .venv/bin/pantherseg train "$@" --output "$work/out" --devices "$devices"
}

phantoms "$work/t1" 1000 1119 --task 1
phantoms "$work/t2" 2000 2119 --task 2
phantoms "$work/organs" 2000 2039 --task 2 --organs
train Task1/training/demo.toml --data t1="$work/t1"
train Task2/training/localizer_demo.toml --data organs="$work/organs"
train Task2/training/demo.toml --data t2="$work/t2" --start task2="$work/out/bundles/task1" --model "$work/out/bundles"
for role in task1 task2 localizer; do
  rm -rf "weights/demo/$role"
  cp -r "$work/out/bundles/$role" weights/demo/
done
# Calibrates them anew, for which they segment 160 phantoms: an hour or two.
.venv/bin/python -m bench.confidence --work "$work/confidence"
