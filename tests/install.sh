#!/bin/sh
# Install into a virtual environment, as pip takes it: with uv, which takes seconds; with pip where uv cannot be had, or fails.
#   tests/install.sh VENV ARGUMENTS…
set -eu
venv=$1
shift
uv=.venv/bin/uv
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
[ -x "$uv" ] && "$uv" pip install --quiet --python "$venv/bin/python" "$@" ||
  "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$@"
