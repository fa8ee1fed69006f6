#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes a release of the commit that is checked out, in dist/. Everything is made
# in an export of that commit, so that nothing gets in that is not committed.
# A release made twice, anywhere, is the same (docs/release.md).
#
# `make release VERSION=1.2.3` runs it, with VERSION, COMMIT, SOURCE_DATE_EPOCH and
# IMAGE_REPOSITORY in its environment.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ! $VERSION =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]]; then
	echo "VERSION=$VERSION is no version: give one like 1.2.3 or 1.2.3-rc.1, without a v" >&2
	exit 2
fi
# dist/install.yaml is committed, and becomes the release's.
if [ -n "$(git status --porcelain -- . ':!dist')" ]; then
	echo "a release is made of a commit, and these files are in none; commit or remove them:" >&2
	git status --short -- . ':!dist' >&2
	exit 1
fi

name=${IMAGE_REPOSITORY##*/}
src=$PWD/build/release
rm -rf "$src" dist
mkdir -p "$src" dist/images
git archive HEAD | tar -x -C "$src"
# Tools that are built need not be built again.
ln -sT "$PWD/bin" "$src/bin"

# Flags of the outer make would get in: -j, or variables for it alone.
make_there() {
	env -u MAKEFLAGS -u MAKEOVERRIDES -u MFLAGS make --no-print-directory -C "$src" "$@" \
		VERSION="$VERSION" COMMIT="$COMMIT" SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" IMAGE_REPOSITORY="$IMAGE_REPOSITORY"
}
# Of its folder $1/$2 an archive $3, with nothing of this machine in it.
pack() {
	tar -C "$1" --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX -c "$2" | gzip -9n >"$3"
}

# The tree names the images of its own version.
make_there config-image
usual=$(sed -n 's/^IMAGE_REPOSITORY ?= //p' Makefile)
sed -i "s|$usual|$IMAGE_REPOSITORY|g" "$src/helm-charts/podconfigmap-controller/values.yaml"
make_there image sbom scorecard-image bundle bundle-image catalog-image chart dist/install.yaml

for image in "$name" "$name-bundle" "$name-catalog" "$name-scorecard"; do
	cp "$src/build/images/$image.tar" "dist/images/$image-v$VERSION.tar"
done
cp "$src/dist/install.yaml" dist/install.yaml
cp "$src"/build/sbom/*.json dist/
cp "$src/build/catalog/podconfigmap-controller/catalog.yaml" "dist/$name-catalog-v$VERSION.yaml"
pack "$src" bundle "dist/$name-bundle-v$VERSION.tar.gz"
pack "$src/helm-charts" podconfigmap-controller "dist/podconfigmap-controller-$VERSION.tgz"
(cd dist && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
rm -rf "$src"
echo "dist/ holds the release $VERSION of $COMMIT:"
cat dist/SHA256SUMS
