#!/bin/sh
# Prints the Python to install with: 3.11 (the tested one) if there is one, else 3.12 to 3.14, with venv and pip.
usable='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
for python in python3.11 python3 python3.12 python3.13 python3.14; do
    if "$python" -c "$usable" 2>/dev/null; then
        echo "$python"
        exit 0
    fi
done
echo "No Python 3.11 to 3.14 with venv was found. On Debian or Ubuntu: sudo apt-get install python3 python3-venv" >&2
exit 1
