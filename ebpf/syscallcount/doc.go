// SPDX-License-Identifier: Apache-2.0

// Package syscallcount counts the system calls of pods in the kernel: one program
// for the whole node, whatever the number of pods. Counts are exact from the first
// call of a container on, and go on while the agent restarts or is upgraded. Where a
// kernel keeps calls from the program, Counter.Missed tells.
//
// # Pins
//
// All of them are in the folder syscallcount of the directory that is given:
//
//	hook1_jump, hook1_stub,        the jump table, the stub, and its link
//	hook1_sys_enter
//	v1_1024_3/                     the maps of layout 1 with 1,024 slots, and the
//	                               links of the programs that follow cgroups; the
//	                               third such folder
//	v1_1024_3/settled/             it needs none of the folders before it
//	v1_1024_4_new/                 not yet in use; left by a crash
//
// A new agent of the same layout takes the maps over and exchanges the programs. One
// of another layout makes the next folder, lets its own program count into it, waits
// until no program can write to the folders before, writes their totals into it as
// carried values, marks it settled, and deletes them. Each step can be done again: a
// crash between any two of them is repaired by the next Open. Structs grow at their
// ends only, so that an agent reads the maps of a later build, too.
//
// # Limits
//
// Calls that seccomp denies never reach the tracepoint. Calls of 32-bit programs are
// counted under the 64-bit name of their number. Where the kernel cannot pin the link
// of a raw tracepoint (before Linux 5.7) nothing is counted while no agent runs. From
// Linux 7 on the kernel may preempt the program, and until it goes on it keeps the
// other calls of that CPU from it (docs/decisions/0025-preempted-programs.md). The
// counts per process are in an LRU table: old entries may be lost, and those of two
// processes that had the same ID are not told apart.
package syscallcount
