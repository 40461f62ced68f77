#!/bin/sh
# Run an image as a cluster would (read-only, all capabilities dropped, a plain user) and rank through it.
# usage: docker/try.sh IMAGE CHECKPOINT    ENGINE=docker|podman (default: whichever answers)   PORT=8765
#   RUN_FLAGS="--gpus all" for the CUDA image; podman: "--device nvidia.com/gpu=all"
#   READY_S=180: how long the checkpoint may take to load
set -eu
image=$1
checkpoint=$(realpath "$2")
port=${PORT:-8765}
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}

# The host's network: the port stays on loopback, and no network plugin is needed.
container=$("$engine" run --detach --no-healthcheck --read-only --cap-drop all --security-opt no-new-privileges --user 10001:10001 \
    --network host --tmpfs /tmp --shm-size 1g ${RUN_FLAGS:-} --volume "$checkpoint:/checkpoint:ro" \
    --env BEHOLDER_HOST=127.0.0.1 --env "BEHOLDER_PORT=$port" "$image" serve /checkpoint --max-model-len 1024)
trap '"$engine" rm --force --volumes "$container" >/dev/null' EXIT

ask() { "$engine" exec "$container" "$@"; }
give_up=$(($(date +%s) + ${READY_S:-180}))
until ask python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/readyz')" 2>/dev/null; do
    if [ "$(date +%s)" -ge "$give_up" ] || [ "$("$engine" inspect --format '{{.State.Running}}' "$container")" != true ]; then
        "$engine" logs "$container" >&2
        echo "The container is not ready." >&2
        exit 1
    fi
    sleep 2
done

ask id
if ask touch /opt/written 2>/dev/null; then echo "The root file system can be written." >&2; exit 1; fi
echo "the root file system is read-only"
ask grep CapEff /proc/1/status
ask beholder rank "Which fruit is this?" --response "An apple." --response "A pear." --url "http://127.0.0.1:$port"
"$engine" stop --time 60 "$container" >/dev/null
status=$("$engine" inspect --format '{{.State.ExitCode}}' "$container")
echo "after SIGTERM it exits with $status"
[ "$status" -eq 0 ]
