#!/usr/bin/env bash
# Build the image where no registry can be reached: buildah runs the Dockerfile on a base image made of Debian packages.
#   apt-get install buildah mmdebstrap
#   deploy/docker/build_offline.sh nearcast     # then: buildah images; buildah push nearcast oci-archive:nearcast.tar
# The base has the Python of this Debian, and takes packages from where this machine takes them (apt and pip).
set -euo pipefail
name=${1:-nearcast}
here=$(cd "$(dirname "$0")" && pwd)
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
base=$(sed -n 's/^FROM \(.*\) AS build$/\1/p' "$here/Dockerfile")
base=${base/'${PYTHON}'/$(sed -n 's/^ARG PYTHON=//p' "$here/Dockerfile")}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# chroot: needs no privilege to make namespaces; vfs: no overlay file system
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}

echo "== a base image $base of $release"
mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-dev,python3-pip "$release" "$scratch/base" \
    "${APT_SOURCES:-/etc/apt/sources.list.d/debian.sources}"
rm -f "$scratch"/base/usr/lib/python3*/EXTERNALLY-MANAGED # as in the images of Python, pip may write to the system
ln -sf python3 "$scratch/base/usr/bin/python"
container=$(buildah from scratch)
buildah copy --quiet "$container" "$scratch/base" /
buildah commit --quiet --rm "$container" "docker.io/library/$base"

echo "== the image $name"
buildah bud --file "$here/Dockerfile" --pull-never --tag "$name" "$@" "$here/../.."
