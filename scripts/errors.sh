# Prints an error and exits, by default with code 1; sourced.

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}
