#!/bin/sh
# The part of the suite marked `lowest`, at the lowest versions pyproject.toml allows: the hosts people have.
# With --prepare, only what it needs is installed.
set -eu
cd "$(dirname "$0")/.."
venv=.venv-lowest
if [ ! -e "$venv/.done" ] || [ pyproject.toml -nt "$venv/.done" ]; then
  rm -rf "$venv"
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" tests/lowest_versions.py >"$venv/constraints.txt"
  sh tests/install.sh "$venv" --constraint "$venv/constraints.txt" \
    --editable . ipykernel xllamacpp llguidance nbclient nbformat jupyter_client ollama openai hypothesis pytest pytest-timeout setuptools
  touch "$venv/.done"
fi
[ "${1:-}" != --prepare ] || exit 0
exec "$venv/bin/python" tests/once_more.py -m lowest -W default
