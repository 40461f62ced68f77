#!/bin/sh
# The chart, the alerts and the Dockerfile. What is missing on a user's machine is skipped with a message; CI fails.
# usage: tools/check_ops.sh PYTHON_WITH_BEHOLDER
set -eu
cd "$(dirname "$0")/.."
ops=${VENV_OPS:-.venv-ops}
rules=helm/beholder/alerts

skip() {
    echo "$1" >&2
    [ -z "${CI:-}" ] || exit 1
}

install_ops() {
    [ -e "$ops/.installed" ] && [ ! pyproject.toml -nt "$ops/.installed" ] && return
    echo "==> Installing the tools for the chart into $ops (75 MB)"
    "$1" -m venv "$ops" && "$ops/bin/python" -m pip install --quiet --upgrade "pip>=25.1" \
        && "$ops/bin/python" -m pip install --quiet --group ops && touch "$ops/.installed"
}

"$1" tools/chart_docs.py --check
if command -v promtool >/dev/null; then
    promtool check rules $rules/beholder.yaml
    promtool test rules $rules/beholder_test.yaml
else
    skip "promtool is not installed (Debian: prometheus): the alert rules are not checked."
fi
if install_ops "$1"; then
    "$ops/bin/hadolint" docker/Dockerfile
    "$ops/bin/python" -m pytest -q --override-ini addopts=--strict-markers helm/tests
else
    skip "The tools for the chart cannot be installed: chart and Dockerfile are not checked."
fi
