# How a script ends with an error; sourced.

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}
