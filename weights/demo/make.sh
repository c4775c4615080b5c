#!/usr/bin/env bash
# Makes the demo models: phantoms, then the three trainings. Needs .venv (./do_test_run.sh --native makes it).
# Minutes: see training.json beside each model. With a folder as argument, phantoms and nnU-Net's files stay there.
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
pantherseg train Task1/training/demo.toml "$work/t1" "$work/models/task1" --work "$work/task1"
pantherseg train Task2/training/localizer_demo.toml "$work/organs" "$work/models/localizer" --work "$work/localizer"
pantherseg train Task2/training/demo.toml "$work/t2" "$work/models/task2" --work "$work/task2" --start "$work/models/task1"
for role in task1 task2 localizer; do
  rm -rf "weights/demo/$role"
  pantherseg pack "$work/models/$role" "weights/demo/$role"
  cp "$work/models/$role/training.json" "weights/demo/$role/"
done
