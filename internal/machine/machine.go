// Package machine describes a machine: what it has, as found out by [Detect], and the resources and
// labels of machines and nodes, with their texts.
//
// What it promises:
//
//   - Amounts are exact: they are integers, in thousandths of a unit, or in bytes for memory. What
//     can't be represented is refused, never rounded; an overflow is an error.
//   - A text that is accepted is in bounds, and the String of what it stands for is accepted again,
//     with the same meaning. An error names the part of the text that is refused.
//   - A machine has no more than this process may use: the limits of the process's cgroups, its CPU
//     affinity and CUDA_VISIBLE_DEVICES are respected.
//
// It is a leaf, which imports nothing of the project: Brain keeps accounts of these types, and
// hosts detect them. Where to start: detect.go (with cgroup.go and gpu.go), resources.go,
// labels.go.
//
// The maps of the package are as safe for concurrent use as other maps; its functions never retain
// or modify what is passed to them.
package machine

// Description is what a machine has, as far as this process may use it.
type Description struct {
	// Hostname is the name that the kernel reports.
	Hostname string
	// GOOS and GOARCH are those of this program.
	GOOS, GOARCH string
	// CPUs is in thousandths of a CPU, at least 1.
	CPUs int64
	// Memory is in bytes.
	Memory int64
	// GPUs are the identifiers of the GPUs, each as it is to be put into CUDA_VISIBLE_DEVICES of a
	// process that gets it: a UUID (`GPU-8932f937-…`), or an index among the GPUs of the machine.
	// They are valid beside each other, and with this process's environment.
	GPUs []string
}

// Platform returns what programs the machine executes, `GOOS/GOARCH`.
func (d Description) Platform() string { return d.GOOS + "/" + d.GOARCH }

// Resources returns the machine's capacity: CPUs, memory, and GPUs if there are any.
func (d Description) Resources() Resources {
	r := Resources{CPU: d.CPUs, Memory: d.Memory}
	if len(d.GPUs) > 0 {
		r[GPU] = Unit * int64(len(d.GPUs))
	}
	return r
}
