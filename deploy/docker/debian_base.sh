#!/bin/sh
# Build the base image of the Dockerfile from Debian's packages, for machines that reach no registry of images.
#   deploy/docker/debian_base.sh [NAME]    # default: localhost/python-base
#   buildah bud -f deploy/docker/Dockerfile --build-arg BASE=localhost/python-base -t nearcast .
# Needs mmdebstrap, buildah and root. SUITE (bookworm) and MIRROR (that of mmdebstrap) choose what is installed.
set -eu
name="${1:-localhost/python-base}"
files="$(mktemp -d)"
trap 'rm -rf "$files"' EXIT
# Without device nodes, which a builder makes itself; pip installs into the system, as in the images of Python.
mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-dev,python3-pip --skip=output/dev \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
  "${SUITE:-bookworm}" "$files/root.tar" ${MIRROR:+"$MIRROR"}
container="$(buildah from scratch)"
buildah add --quiet "$container" "$files/root.tar" /
buildah commit --rm "$container" "$name"
