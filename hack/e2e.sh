#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs targets of make one after the other, also after one has failed, and prints what
# each took. An interrupt ends it, once the target that runs has cleaned up.
#
# Usage: hack/e2e.sh TARGET...
set -euo pipefail
cd "$(dirname "$0")/.."

summary=
# Adds a line to the summary. Usage: tell TARGET SECONDS RESULT
tell() { summary+=$(printf '%-18s %3d:%02d  %s' "$1" $(($2 / 60)) $(($2 % 60)) "$3")$'\n'; }

# Why a target cannot run on a machine, whatever is configured or installed.
cannot() {
	case $1 in
	test-virtual-node)
		[ "$(uname -m)" = x86_64 ] || echo "its kernels are for x86_64, and this is $(uname -m)"
		command -v qemu-system-x86_64 >/dev/null || echo "there is no qemu-system-x86_64: apt-get install qemu-system-x86 xz-utils busybox-static"
		;;
	esac
}

interrupted= running= untold=
# What runs is told in any case, also where only this script is, and cleans up.
interrupt() {
	interrupted=yes
	if [ -n "$running" ]; then
		kill -TERM "$running" 2>/dev/null || : # it may have ended
	else
		untold=yes
	fi
}
trap interrupt HUP INT TERM
# Makes a target, and waits until it has ended. A signal ends a wait.
make_target() {
	local code
	${MAKE:-make} --no-print-directory "$1" &
	running=$!
	# A signal may have come before its process was known.
	if [ -n "$untold" ]; then
		kill -TERM "$running" 2>/dev/null || :
	fi
	while :; do
		code=0
		wait "$running" || code=$?
		kill -0 "$running" 2>/dev/null || break
	done
	running=
	return "$code"
}
failed=0
for target in "$@"; do
	reason=$(cannot "$target")
	if [ -n "$reason" ]; then
		tell "$target" 0 "skipped: $reason"
		continue
	fi
	echo "===== make $target"
	began=$SECONDS result=ok
	make_target "$target" || { failed=1 result=FAILED; }
	tell "$target" $((SECONDS - began)) "$result"
	if [ -n "$interrupted" ]; then
		failed=130
		break
	fi
done
printf '\n===== Summary (%d:%02d)\n%s' $((SECONDS / 60)) $((SECONDS % 60)) "$summary"
exit "$failed"
