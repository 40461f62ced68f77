#!/bin/sh
# Build the service's image with whichever of docker, podman and buildah is there. `make image` calls it.
#   BASE_IMAGE, BASE_DIGEST: see the Dockerfile (default: for the CPU)   IMAGE: its name   BUILDER: docker, podman, buildah
#   BUILD_FLAGS: more for the builder, such as "--volume /etc/pip.conf:/etc/pip.conf:ro"
set -eu
cd "$(dirname "$0")/.."

choose() {
    if docker info >/dev/null 2>&1; then echo docker; return; fi
    for builder in podman buildah; do
        if command -v $builder >/dev/null; then echo $builder; return; fi
    done
    echo "None of docker (with its daemon running), podman and buildah is there." >&2
    exit 1
}

builder=${BUILDER:-$(choose)}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' service/beholder/__init__.py)
image=${IMAGE:-beholder:$version}
set -- --file docker/Dockerfile --tag "$image" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || true)"
[ -z "${BASE_IMAGE:-}" ] || set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"
[ -z "${BASE_DIGEST:-}" ] || set -- "$@" --build-arg "BASE_DIGEST=$BASE_DIGEST"
# The OCI format has no HEALTHCHECK.
[ "$builder" = docker ] || set -- "$@" --format docker --layers

echo "==> $image with $builder"
# shellcheck disable=SC2086
"$builder" build "$@" ${BUILD_FLAGS:-} .
echo "==> Next: docker/try.sh $image CHECKPOINT"
