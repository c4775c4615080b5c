#!/usr/bin/env bash
# Makes the demo models: phantoms, then the three trainings. Needs .venv (./do_test_run.sh --native makes it).
# Minutes: see training.json beside each model. With a folder as argument, phantoms and
# nnU-Net's files stay there, and a second run goes on where the first was interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=${1:-$(mktemp -d)}
[[ $# -gt 0 ]] || trap 'rm -rf "$work"' EXIT
# With more threads than free cores, threads that wait busily slow each other down.
export OMP_WAIT_POLICY=PASSIVE

pantherseg() {
  .venv/bin/pantherseg "$@"
}

pantherseg phantom "$work/t1" --task 1 --cases 40 --seed 1000
pantherseg phantom "$work/t2" --task 2 --cases 100 --seed 2000
pantherseg phantom "$work/organs" --task 2 --cases 40 --seed 2000 --organs
train() {
  pantherseg train "$@" --output "$work/out" --devices cpu
}

train Task1/training/demo.toml --data t1="$work/t1"
train Task2/training/localizer_demo.toml --data organs="$work/organs"
train Task2/training/demo.toml --data t1="$work/t1" --data t2="$work/t2" --model "$work/out/bundles"
for role in task1 task2 localizer; do
  rm -rf "weights/demo/$role"
  cp -r "$work/out/bundles/$role" weights/demo/
done
