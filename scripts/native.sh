# Sets up .venv to run without a container; sourced after scripts/errors.sh with the project's root as the working
# directory.

# Installs the packages of requirements.lock, again whenever the file has changed.
install() {
  local stamp=.venv/requirements.lock python=${PYTHON:-python3}
  cmp -s requirements.lock "$stamp" && return
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$python: expected Python 3.11 or later, found $("$python" --version 2>&1 || true); set PYTHON"
  echo "installing into .venv (about 7 GB, some minutes, once)"
  [[ -x .venv/bin/python ]] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r requirements.lock
  .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --editable .
  cp requirements.lock "$stamp"
}
