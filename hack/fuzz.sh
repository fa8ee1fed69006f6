#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz test for a while. What one finds it leaves under testdata/fuzz,
# where it is a test case from then on.
#
# Usage: hack/fuzz.sh TIME
set -euo pipefail
cd "$(dirname "$0")/.."

grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sort | while IFS=: read -r file name; do
	name=${name#func }
	echo "fuzzing $name in $(dirname "$file") for $1"
	go test -run='^$' -fuzz="^$name\$" -fuzztime="$1" -fuzzminimizetime=1x "$(dirname "$file")" </dev/null
done
