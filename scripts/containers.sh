# Functions of do_build.sh, do_test_run.sh and do_save.sh; sourced with the project's root as the working directory.

# shellcheck source=scripts/errors.sh
source scripts/errors.sh

# The user's models, if there are any, are used instead of the demo models.
readonly OWN_WEIGHTS=weights/own
readonly DEMO_WEIGHTS=weights/demo

tasks=(task1 task2)
tag=
weights=
base_image=${BASE_IMAGE:-python:3.11-slim-bookworm}
runtime=cuda
api=exec
# The file of another recipe than the task's own, and the name that the image gets by it.
recipe=
recipe_name=

# Reads an argument that all scripts have in common; sets `taken` to its number of words, 0 for any other argument.
shared_argument() {
  taken=1
  case $1 in
    -h | --help) usage && exit ;;
    task1 | task2) tasks=("$1") ;;
    all) tasks=(task1 task2) ;;
    --tag | --model | --base-image | --runtime | --api | --recipe)
      (($# > 1)) || fail "$1: expected a value, found nothing" 2
      taken=2
      case $1 in
        --tag) tag=$2 ;;
        --model) weights=$2 ;;
        --base-image) base_image=$2 ;;
        --runtime) runtime=$2 ;;
        --api) api=$2 ;;
        --recipe) recipe=$2 ;;
      esac
      ;;
    *) taken=0 ;;
  esac
}

# Checks the arguments after all have been read.
check_arguments() {
  [[ -z $tag || ${#tasks[@]} -eq 1 ]] || fail "--tag: expected a single task, found all" 2
  [[ $tag != *[A-Z]* ]] || fail "--tag: expected lower case, which Docker requires, found $tag" 2
  [[ $runtime == cuda || $runtime == cpu ]] || fail "--runtime: expected cuda or cpu, found $runtime" 2
  [[ $api == exec || $api == invoke ]] || fail "--api: expected exec or invoke, found $api" 2
  [[ -z $recipe ]] || choose_recipe
  [[ -z $weights || -d $weights ]] || fail "--model: expected a folder, found $weights" 2
}

# Finds the recipe of --recipe, a file or the name of one below Task1/recipes or Task2/recipes, which must be for the task.
choose_recipe() {
  local shipped=(Task[12]/recipes/"$recipe".toml)
  ((${#tasks[@]} == 1)) || fail "--recipe: expected a single task, found all" 2
  [[ -f $recipe || ! -f ${shipped[0]} ]] || recipe=${shipped[0]}
  [[ -f $recipe ]] || fail "--recipe: expected a file or the name of a shipped recipe, found $recipe" 2
  grep -q "\"abdominal-t${tasks[0]#task}-mri\"" "$recipe" ||
    fail "--recipe: expected a recipe with the input socket of ${tasks[0]}, found $recipe" 2
  recipe_name=$(basename "${recipe%.toml}" | tr '[:upper:]' '[:lower:]')
}

# Reads the arguments of a script that has only the common ones.
parse_shared_arguments() {
  while (($#)); do
    shared_argument "$@"
    ((taken)) || { usage >&2 && fail "$1: expected an option above" 2; }
    shift "$taken"
  done
  check_arguments
}

image_of() {
  local name=pantherseg-${recipe_name:-$1}
  [[ $runtime == cuda ]] || name+=-$runtime
  [[ $api == exec ]] || name+=-$api
  echo "${tag:-$name}"
}

# Prints the contract that an image's label names.
contract_of() {
  local label
  label=$(docker image inspect --format '{{index .Config.Labels "org.grand-challenge.api-method"}}' "$1")
  echo "${label:-exec}"
}

engine_answers() {
  command -v docker >/dev/null && docker info >/dev/null 2>&1
}

require_engine() {
  engine_answers || fail "docker: expected a running Docker engine, found none"
}

# Prints the commit of this checkout, with `-dirty` if files have changed since; `unknown` without git.
revision() {
  local commit
  commit=$(is_checkout && git rev-parse --verify --quiet HEAD) || { echo unknown && return; }
  [[ -z $(git status --porcelain) ]] || commit+=-dirty
  echo "$commit"
}

# Whether this folder is the root of a git checkout; a copy inside another checkout is not.
is_checkout() {
  [[ $(git rev-parse --show-toplevel 2>/dev/null) -ef . ]]
}

# Prints the web address that this checkout was cloned from, without a password; `unknown` if there is none.
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

# Builds a task's image. With another recipe, that is one more layer on the task's own image.
build_image() {
  local image
  image=$(image_of "$1")
  if [[ -z $recipe ]]; then
    build_own_image "$1" "$image"
    return
  fi
  local own folder options=()
  own=$(recipe_name='' tag='' image_of "$1")
  build_own_image "$1" "$own"
  echo "== building $image"
  read -ra options <<<"${DOCKER_BUILD_OPTIONS:-}"
  folder=$(mktemp -d)
  cp "$recipe" "$folder/recipe.toml" && chmod 0644 "$folder/recipe.toml"
  printf 'FROM %s\nCOPY recipe.toml /opt/pantherseg/%s/recipe.toml\n' "$own" "${1/task/Task}" >"$folder/Dockerfile"
  docker build "${options[@]}" --tag "$image" "$folder" || { rm -rf "$folder" && return 1; }
  rm -rf "$folder"
}

# Builds the image of a task with its own recipe, by this name.
build_own_image() {
  local options=() commit image=$2
  read -ra options <<<"${DOCKER_BUILD_OPTIONS:-}"
  commit=$(revision)
  # The time of the commit, so that the same commit gives the same labels.
  [[ $commit == unknown || $commit == *-dirty ]] ||
    options+=(--label "org.opencontainers.image.created=$(git show --no-patch --format=%cI)")
  echo "== building $image"
  docker build "${options[@]}" --build-arg "BASE_IMAGE=$base_image" --build-arg "RUNTIME=$runtime" \
    --build-arg "API=$api" \
    --build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' common/pantherseg/__init__.py)" \
    --build-arg "REVISION=$commit" --build-arg "SOURCE=$(source_address)" \
    --file "Dockerfile.$1" --tag "$image" .
}

# Lists the packages that are installed in a task's image in a file (CycloneDX).
list_contents() {
  local image
  image=$(image_of "$1")
  docker run --rm --network none --entrypoint python "$image" -m pantherseg sbom --name "$image" \
    --image-id "$(docker image inspect --format '{{.Id}}' "$image")" >"$2"
}

# Prints the folder of a task's models: --model, else the user's models, else the demo models.
weights_of() {
  if [[ -n $weights ]]; then
    echo "$weights"
  elif [[ -d $OWN_WEIGHTS/$1 ]]; then
    echo "$OWN_WEIGHTS"
  else
    [[ ! -d $OWN_WEIGHTS ]] || echo "$OWN_WEIGHTS has no folder $1: using the demo models" >&2
    echo "$DEMO_WEIGHTS"
  fi
}

# Packs a task's models from one folder into the subfolder `models` of another: with .venv if it exists, else with the
# task's image, preferably the cuda image, because only that can read checkpoints.
packer() {
  local task=$1 models=$2 packed=$3 image=pantherseg-$1 settings=(--task "${1#task}") mount=()
  [[ -z $recipe ]] || settings=(--recipe "$recipe")
  if [[ -x .venv/bin/pantherseg ]]; then
    .venv/bin/pantherseg pack "$models" "$packed/models" "${settings[@]}"
  else
    docker image inspect "$image" >/dev/null 2>&1 || image=$(image_of "$task")
    [[ -z $recipe ]] || mount=(--volume "$(realpath "$recipe"):/recipe.toml:ro") settings=(--recipe /recipe.toml)
    docker run --rm --network none --user "$(id -u):$(id -g)" --entrypoint python \
      --volume "$(realpath "$models"):/models:ro" --volume "$(realpath "$packed"):/packed" "${mount[@]}" \
      "$image" -m pantherseg pack /models /packed/models "${settings[@]}"
  fi
}

# Packs the models that the recipe names into a model.tar.gz whose bytes depend only on the models. After an
# interruption, the caller must remove the working folder <target>.packed.
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
