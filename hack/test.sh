#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs tests: those of packages that run nothing but themselves take what has not changed
# from go's cache, all others run. Each of the two has a summary.
#
# Usage: COMMAND=… PACKAGES=… CACHEABLE=… hack/test.sh [FLAGS OF GO TEST]
set -euo pipefail

# shellcheck disable=SC2086 # lists of packages
{
	all=$(go list $PACKAGES)
	cacheable=$(go list $CACHEABLE)
}
failed=0
# run MATCH FLAG...: the packages that grep finds so among the cacheable ones.
run() {
	local packages
	packages=$(grep "$1" "$cacheable" <<<"$all") || [ $? -eq 1 ] # none
	shift
	if [ -n "$packages" ]; then
		# shellcheck disable=SC2086 # lists of words
		$COMMAND "$@" $packages || failed=1
	fi
}
run -xF "$@"
run -vxF -count=1 "$@"
exit "$failed"
