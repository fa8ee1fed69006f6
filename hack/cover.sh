#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs all tests and prints the coverage of the operator's packages: what the
# tests run themselves, and what the operator ran that they started as a program
# (but for those that they killed, which could write nothing).
#
# Usage: PACKAGES=… hack/cover.sh [FLAGS OF GO TEST]   (the packages whose tests run)
set -euo pipefail
cd "$(dirname "$0")/.."

out=$PWD/build/cover
rm -rf "$out"
mkdir -p "$out/tests" "$out/operator"
packages=$(go list ./... | grep -vE '/(hack|test)(/|$)')
covered=$(tr '\n' ',' <<<"$packages" | sed 's/,$//')

failed=0
COVER_PACKAGES=$covered GOCOVERDIR=$out/operator \
	go test -cover -coverpkg="$covered" "$@" $PACKAGES -args -test.gocoverdir="$out/tests" >"$out/tests.txt" 2>&1 || failed=1
# Each line of go test's tells the share of all packages that one test covers.
sed -E 's/\tcoverage: .*//; /coverage: [0-9.]+% of statements/d' "$out/tests.txt"

echo
echo "Coverage by package:"
go tool covdata percent -i="$out/tests,$out/operator" | sed -E 's/coverage: | of statements//g'
go tool covdata textfmt -i="$out/tests,$out/operator" -o="$out/profile.txt"
echo "Total:"
go tool cover -func="$out/profile.txt" | awk '$1 == "total:" {print "\t" $NF}'
echo "By line: go tool cover -html=build/cover/profile.txt"
exit "$failed"
