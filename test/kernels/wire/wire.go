// SPDX-License-Identifier: Apache-2.0

// Package wire is what test/kernels and the guest in its machines tell each other.
package wire

// Where the guest finds what it is to do, in its file system.
const (
	JobsFile    = "/jobs.json"
	ModulesFile = "/modules.json"
)

// Jobs are what the guest does, one after the other.
type Jobs struct {
	Tests []Job
	// Trials are sets of capabilities, by their names without CAP_, with which
	// the programs are loaded, attached and removed.
	Trials [][]string
}

// Job is a test binary and its arguments, run in its folder.
type Job struct {
	Name string
	Args []string
}

// Message is a line of JSON from the guest: exactly one field is set.
type Message struct {
	Kernel *Kernel `json:",omitempty"`
	Output *Output `json:",omitempty"`
	Exit   *Exit   `json:",omitempty"`
	Trial  *Trial  `json:",omitempty"`
	// Broken is what keeps the guest itself from its work.
	Broken string `json:",omitempty"`
	// End is the last message.
	End bool `json:",omitempty"`
}

// Kernel is what the guest runs on.
type Kernel struct {
	Release string
	BTF     bool
	// Preemption is the kernel's own word for how it preempts itself; empty where it
	// cannot be chosen.
	Preemption string
}

// Output is a line that a job wrote.
type Output struct{ Job, Line string }

// Exit is the end of a job. Error is empty where it ended well.
type Exit struct{ Job, Error string }

// Trial is what became of each feature with a set of capabilities.
type Trial struct {
	Capabilities []string
	// Features: the name of a feature to what is wrong with it; "" is nothing.
	Features map[string]Outcome
}

// Outcome of a feature.
type Outcome struct {
	// Unsupported is the text of a *kernelfeature.Unsupported.
	Unsupported string `json:",omitempty"`
	// Wrong is any other error, or that what the probe says does not hold.
	Wrong string `json:",omitempty"`
}
