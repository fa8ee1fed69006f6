// SPDX-License-Identifier: Apache-2.0

package main

// olderKernels is written by hand: there is no such kernel to be tried.
const olderKernels = `
## Linux 5.4 to 5.9

These are not tested: Debian's mirrors serve none. No suite from bullseye on has a
kernel before 5.10; 5.4 was in buster-backports for a time, and the suites of buster
are no longer on the mirrors. What the code does there:

| | 5.4 to 5.6 | 5.7 | 5.8, 5.9 |
| --- | --- | --- | --- |
| ` + "`SyscallCounter`" + ` | with BTF; nothing is counted while no agent runs | with BTF | with BTF |
| ` + "`L4Firewall`, `ConnectDenied`" + ` | – | – | – |
| capabilities of the legacy agent that matter | ` + "`SYS_ADMIN`, `SYS_RESOURCE`" + ` | the same | ` + "`BPF`, `PERFMON`, `SYS_RESOURCE`" + ` |

A raw tracepoint's link can be pinned from 5.7 on. What the agent reports of the
firewall:

`
