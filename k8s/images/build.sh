#!/usr/bin/env bash
# Builds the CPU image: k8s/images/build.sh TAG [argument of podman build ...]
#
#   k8s/images/build.sh genrec:dev
#   k8s/images/build.sh genrec:dev --build-arg PIP_ARGS="--index-url https://..."   another package index
#   k8s/images/build.sh genrec:dev --volume /etc/pip.conf:/etc/pip.conf:ro          the host's configuration of pip
#   DEBOOTSTRAP=1 k8s/images/build.sh genrec:dev    docker.io cannot be reached: the base image from Debian packages
#
# DEBOOTSTRAP needs root and debootstrap; MIRROR: where Debian's packages come from.
set -euo pipefail
tag=${1:?"usage: $0 TAG [argument of podman build ...]"}
shift
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
arguments=()

make_base() (
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    chmod 755 "$folder"  # it becomes / of other users
    debootstrap --variant=minbase --include=python3.11-venv,python3-distutils,libpython3.11,ca-certificates,gpgv bookworm "$folder" \
        "${MIRROR:-http://deb.debian.org/debian}"
    tar -C "$folder" --exclude='./var/cache/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
        --exclude='./dev/*' -c . \
        | podman import --change ENV=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin - "$1"
)

if [[ ${DEBOOTSTRAP:-} ]]; then
    base=localhost/genrec-base:bookworm-python3.11
    podman image exists "$base" || make_base "$base"
    arguments+=(--build-arg "BASE=$base")
fi
# docker: OCI's format has no HEALTHCHECK.
exec podman build --isolation=chroot --format=docker --file "$here/cpu/Containerfile" --tag "$tag" \
    --build-arg "VERSION=$(sed -n 's/^__version__ = "\([^"]*\)".*/\1/p' "$root/genrec/__init__.py")" \
    --build-arg "REVISION=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)" \
    "${arguments[@]}" "$@" "$root"
