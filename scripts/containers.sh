# What do_build.sh, do_test_run.sh and do_save.sh share; sourced with the project's root as the working directory.

# shellcheck source=scripts/errors.sh
source scripts/errors.sh

# Weights of one's own, found here, take the place of the demo's.
readonly OWN_WEIGHTS=weights/own
readonly DEMO_WEIGHTS=weights/demo

tasks=(task1 task2)
tag=
weights=
base_image=${BASE_IMAGE:-python:3.11-slim-bookworm}
runtime=cuda

# Reads one argument that every script knows; sets `taken` to the number of words that it was, 0 for an unknown one.
shared_argument() {
  taken=1
  case $1 in
    -h | --help) usage && exit ;;
    task1 | task2) tasks=("$1") ;;
    all) tasks=(task1 task2) ;;
    --tag | --model | --base-image | --runtime)
      (($# > 1)) || fail "$1: expected a value, found nothing" 2
      taken=2
      case $1 in
        --tag) tag=$2 ;;
        --model) weights=$2 ;;
        --base-image) base_image=$2 ;;
        --runtime) runtime=$2 ;;
      esac
      ;;
    *) taken=0 ;;
  esac
}

# Checks what cannot be checked argument by argument.
check_arguments() {
  [[ -z $tag || ${#tasks[@]} -eq 1 ]] || fail "--tag: expected one task beside it, found all" 2
  [[ $tag != *[A-Z]* ]] || fail "--tag: expected lower case, as Docker asks for, found $tag" 2
  [[ $runtime == cuda || $runtime == cpu ]] || fail "--runtime: expected cuda or cpu, found $runtime" 2
  [[ -z $weights || -d $weights ]] || fail "--model: expected a folder, found $weights" 2
}

# Reads the arguments of a script that has none of its own.
parse_shared_arguments() {
  while (($#)); do
    shared_argument "$@"
    ((taken)) || { usage >&2 && fail "$1: expected an option above" 2; }
    shift "$taken"
  done
  check_arguments
}

image_of() {
  local name=pantherseg-$1
  [[ $runtime == cuda ]] || name+=-$runtime
  echo "${tag:-$name}"
}

engine_answers() {
  command -v docker >/dev/null && docker info >/dev/null 2>&1
}

require_engine() {
  engine_answers || fail "docker: expected an engine that answers, found none"
}

# Prints the commit of this checkout, with `-dirty` where files differ from it; `unknown` without git.
revision() {
  local commit
  commit=$(is_checkout && git rev-parse --verify --quiet HEAD) || { echo unknown && return; }
  [[ -z $(git status --porcelain) ]] || commit+=-dirty
  echo "$commit"
}

# Whether git knows this very folder: a copy inside of another checkout has none of its own.
is_checkout() {
  [[ $(git rev-parse --show-toplevel 2>/dev/null) -ef . ]]
}

# Prints the address that this checkout was cloned from, without a password; `unknown` if it is not on the web.
source_address() {
  local address
  address=$(is_checkout && git remote get-url origin 2>/dev/null) || address=
  if [[ $address =~ ^https?://([^/@]*@)?([^/]+/.+)$ ]]; then
    address=https://${BASH_REMATCH[2]}
  elif [[ $address =~ ^(ssh://)?[^/@:]+@([^/:]+)[:/](.+)$ ]]; then
    address=https://${BASH_REMATCH[2]}/${BASH_REMATCH[3]}
  else
    address=unknown
  fi
  echo "${address%.git}"
}

build_image() {
  local options=() commit
  read -ra options <<<"${DOCKER_BUILD_OPTIONS:-}"
  commit=$(revision)
  # The time of the commit, so that the same commit has the same labels; of other files nobody knows one.
  [[ $commit == unknown || $commit == *-dirty ]] ||
    options+=(--label "org.opencontainers.image.created=$(git show --no-patch --format=%cI)")
  echo "== building $(image_of "$1")"
  docker build "${options[@]}" --build-arg "BASE_IMAGE=$base_image" --build-arg "RUNTIME=$runtime" \
    --build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' common/pantherseg/__init__.py)" \
    --build-arg "REVISION=$commit" --build-arg "SOURCE=$(source_address)" \
    --file "Dockerfile.$1" --tag "$(image_of "$1")" .
}

# Writes what is installed in a task's image to a file, as CycloneDX; the image says so itself.
list_contents() {
  local image
  image=$(image_of "$1")
  docker run --rm --network none --entrypoint python "$image" -m pantherseg sbom --name "$image" \
    --image-id "$(docker image inspect --format '{{.Id}}' "$image")" >"$2"
}

# Prints the folder whose models are packed for a task: --model, else one's own, else the demo's.
weights_of() {
  if [[ -n $weights ]]; then
    echo "$weights"
  elif [[ -d $OWN_WEIGHTS/$1 ]]; then
    echo "$OWN_WEIGHTS"
  else
    [[ ! -d $OWN_WEIGHTS ]] || echo "$OWN_WEIGHTS has no folder $1: the demo models are taken" >&2
    echo "$DEMO_WEIGHTS"
  fi
}

# Packs a task's models from one folder into another's folder `models`: with .venv if it is there, else with the task's
# image, the large one if it is there, as only that can read checkpoints.
packer() {
  local task=$1 models=$2 packed=$3 image=pantherseg-$1
  if [[ -x .venv/bin/pantherseg ]]; then
    .venv/bin/pantherseg pack "$models" "$packed/models" --task "${task#task}"
  else
    docker image inspect "$image" >/dev/null 2>&1 || image=$(image_of "$task")
    docker run --rm --network none --user "$(id -u):$(id -g)" --entrypoint python \
      --volume "$(realpath "$models"):/models:ro" --volume "$(realpath "$packed"):/packed" \
      "$image" -m pantherseg pack /models /packed/models --task "${task#task}"
  fi
}

# Packs the models that a task's recipe names into a model.tar.gz whose bytes depend on nothing but the models. What
# the folder <target>.packed holds meanwhile is the caller's to remove after an interruption.
pack_model() {
  local task=$1 target=$2 root packed=$2.packed
  root=$(weights_of "$task")
  echo "== packing the models of $root"
  mkdir -p "$packed"
  packer "$task" "$root" "$packed" >/dev/null
  (cd "$packed/models" && find . -type f -printf '%P\n' | LC_ALL=C sort) |
    tar --create --directory "$packed/models" --format ustar --owner 0 --group 0 --numeric-owner --mtime @0 --mode u=rw,go=r \
      --files-from - | gzip --no-name >"$target"
  rm -rf "$packed"
}
