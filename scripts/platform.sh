# Runs a task's image as the platform does; sourced after scripts/containers.sh with the project's root as the working
# directory. It uses `with_model`, `hardened` and `extra`, and calls `score` for each case.

# The platform's limits: 16 GB of memory, RLIMIT_DATA 1 GB less, half the memory for /dev/shm, and in seconds: for each
# case, for the start of a server, for an answer of /health, and between SIGTERM and SIGKILL.
readonly MEMORY=16g DATA_BYTES=16106127360 SHARED_MEMORY=8g MAX_CPUS=4
readonly CASE_SECONDS=1200 START_SECONDS=300 HEALTH_SECONDS=10 KILL_SECONDS=5
# How many cases one server is sent.
readonly CASES=2
# Sends a request to the server inside the container, which has no network, and prints the answer's status.
readonly REQUEST='
import http.client, sys
method, path, seconds = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", 4743, timeout=float(seconds))
try:
    connection.request(method, path)
    print(connection.getresponse().status)
except (OSError, http.client.HTTPException) as error:
    print(repr(error))
'

# Runs a task's image on its sample job, by the contract that its label names. The output, moved to $2, belongs to the
# caller, even after a failure.
run_container() {
  local task=$1 output=$2 contract
  contract=$(contract_of "$(image_of "$task")")
  create_container "$task"
  case $contract in
    exec) run_once "$task" "$output" ;;
    invoke) serve_cases "$task" "$output" ;;
    *) fail "$(image_of "$task"): expected the label org.grand-challenge.api-method to be exec or invoke, found $contract" ;;
  esac
  docker rm --force "$container" >/dev/null
  rm -rf "$work"
  trap - EXIT
}

# Creates the container of a task. Sets `container`, and `work` to a folder with its input, output and model.
create_container() {
  local task=$1
  work=$(mktemp -d)
  container=pantherseg-test-$$
  # shellcheck disable=SC2064  # expand the names now
  trap "docker rm --force $container >/dev/null 2>&1 || true; rm -rf '$work'" EXIT
  mkdir -p "$work/input" "$work/model" "$work/output"
  chmod 0755 "$work" "$work/input" && chmod 0777 "$work/output"
  if $with_model; then
    pack_model "$task" "$work/model.tar.gz"
    tar --extract --gzip --directory "$work/model" --file "$work/model.tar.gz"
    chmod -R a+rX "$work/model"
  fi
  local gpus=()
  # GPUs, if Docker has NVIDIA's runtime and a GPU responds.
  ! docker info --format '{{.Runtimes}}' | grep -q nvidia || ! nvidia-smi >/dev/null 2>&1 || gpus=(--gpus all)
  # The platform's /input is a link to the data, which cannot be created in a read-only container.
  local input=/opt/job
  ! $hardened || input=/input
  docker create --name "$container" --network none --memory "$MEMORY" --memory-swap "$MEMORY" \
    --shm-size "$SHARED_MEMORY" --ulimit "data=$DATA_BYTES" \
    --cpus "$(($(nproc) < MAX_CPUS ? $(nproc) : MAX_CPUS))" "${gpus[@]}" "${extra[@]}" \
    --volume "$work/input:$input:ro" --volume "$work/output:/output" \
    --volume "$work/model:/opt/ml/model" "$(image_of "$task")" >/dev/null
  $hardened || {
    mkdir "$work/root" && ln -s "$input" "$work/root/input"
    tar --create --directory "$work/root" input | docker cp --quiet - "$container:/"
  }
}

# Gives the container the sample job of a task, in place of an earlier one.
give_job() {
  find "$work/input" -mindepth 1 -delete
  cp -r "test/input/$1/." "$work/input"
  chmod -R a+rX "$work/input"
}

# Moves what the container has written to a folder. The files belong to the container's user: gives them to the caller.
take_output() {
  docker run --rm --network none --user 0 --entrypoint chown --volume "$work/output:/output" "$(image_of "$1")" \
    -R "$(id -u):$(id -g)" /output
  rm -rf "$2"
  mkdir -p "$2"
  find "$work/output" -mindepth 1 -maxdepth 1 -exec mv --target-directory "$2" {} +
}

# The contract exec: a container for one case. Sets `seconds` to the time from start to exit.
run_once() {
  local task=$1 output=$2 status=0
  give_job "$task"
  local began=$SECONDS
  # In the background, because bash handles Ctrl-C only after a foreground command has ended.
  timeout --signal TERM --kill-after "$KILL_SECONDS" "$CASE_SECONDS" docker start --attach "$container" &
  wait $! || status=$?
  seconds=$((SECONDS - began))
  take_output "$task" "$output"
  ((status == 0)) || exit "$status"
  score "$task" "$output" "$task"
}

# The contract invoke: a server for several cases. Sets `seconds` to the time from request to answer.
serve_cases() {
  local task=$1 output=$2 number status log
  local began=$SECONDS
  docker start "$container" >/dev/null
  docker logs --follow "$container" &
  log=$!
  await_health "$log"
  echo "GET /health: 200 after $((SECONDS - began)) s"
  for ((number = 1; number <= CASES; number++)); do
    give_job "$task"
    began=$SECONDS
    # In the background, because bash handles a signal only after a foreground command has ended.
    request POST /invoke "$CASE_SECONDS" >"$work/status" &
    wait $! || true
    status=$(<"$work/status")
    seconds=$((SECONDS - began))
    take_output "$task" "$output"
    [[ $status == 201 ]] || fail "POST /invoke, case $number: expected status 201, found ${status:-no answer}"
    score "$task" "$output" "$task, case $number"
  done
  docker stop -t "$KILL_SECONDS" "$container" >/dev/null
  wait "$log" || true
  status=$(docker inspect --format '{{.State.ExitCode}}' "$container")
  [[ $status == 0 ]] || fail "SIGTERM after $CASES cases: expected exit code 0, found $status"
}

# Waits until the server says that it can run cases. $1: the process that shows the container's log.
await_health() {
  local end=$((SECONDS + START_SECONDS)) status=
  until [[ $status == 200 ]]; do
    ((SECONDS < end)) || fail "GET /health: expected status 200 within $START_SECONDS s, found $status"
    if [[ $(docker inspect --format '{{.State.Running}}' "$container") != true ]]; then
      wait "$1" || true
      fail "the container has ended before GET /health was answered with status 200"
    fi
    status=$(request GET /health "$HEALTH_SECONDS" 2>/dev/null) || status="no answer"
    sleep 0.2
  done
}

request() {
  docker exec "$container" python3 -I -c "$REQUEST" "$@"
}
