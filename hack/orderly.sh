#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command, such as `go test`, that cleans up after Ctrl-C, and has it do so after
# SIGTERM and SIGHUP, too, of which go would die at once and leave its temporary files and
# a test that goes on. It ends when all that the command has started in its process group
# has ended, and removes what is left of temporary files.
#
# Usage: hack/orderly.sh COMMAND...
set -uo pipefail

tmp=$(mktemp -d) || exit
trap '' PIPE
set -m
# If this script is killed the command is as well; a test sees that nobody reads it.
# What this script ignores, or was started to ignore, the command does not.
TMPDIR=$tmp setpriv --pdeathsig KILL env --default-signal=HUP,INT,PIPE,TERM "$@" </dev/null &
set +m
group=$!
trap 'kill -INT -- "-$group" 2>/dev/null' HUP INT TERM

# A signal ends a wait.
while :; do
	wait "$group"
	code=$?
	kill -0 "$group" 2>/dev/null || break
done
# Whether a process of the group runs; one that has ended may wait for its parent.
running() {
	local stat state parent of file
	for file in /proc/[0-9]*/stat; do
		{ read -r stat <"$file"; } 2>/dev/null || continue
		read -r state parent of _ <<<"${stat##*) }"
		if [ "$of" = "$group" ] && [ "$state" != Z ]; then
			return 0
		fi
	done
	return 1
}
while running; do
	sleep 0.2
done
rm -rf "$tmp"
exit "$code"
