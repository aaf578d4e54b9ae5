// Package wire has the messages between `raylink run --on kubernetes` and raylink-kubernetes, the
// program that calls the API server. That program is a module of its own, so that no other binary
// links a client of Kubernetes.
//
// It has a [Request] as the first line of its standard input. A line `stop` asks it to stop the run
// in order; the end of the input means at once. What the program prints goes to standard output,
// lines about the run to standard error, and the [Result], as JSON, to file descriptor [ResultFD].
package wire

import "github.com/raylink/raylink/internal/machine"

// Program is the name of the program.
const Program = "raylink-kubernetes"

// ResultFD is the file descriptor of the result.
const ResultFD = 3

// StopLine asks to stop the run in order.
const StopLine = "stop"

// RunVariable is set in the pods of a run, and is the run's id.
const RunVariable = "RAYLINK_RUN"

// Operation is what is asked for.
type Operation string

// The operations.
const (
	Start  Operation = "start"  // run until the program ends, or leave the run behind (Detach)
	Plan   Operation = "plan"   // print the manifests
	State  Operation = "state"  // find out what has become of a run
	Follow Operation = "follow" // print what a run prints until it ends
	Stop   Operation = "stop"   // stop a run in order, and remove it
	Remove Operation = "remove" // remove it at once
)

// Request is what raylink-kubernetes is to do.
type Request struct {
	Operation Operation `json:"operation"`
	Target    Target    `json:"target"`
	// Run is what to run, for Start and Plan.
	Run *Run `json:"run,omitempty"`
}

// Target is a run, and where it is.
type Target struct {
	// ID is the id of the run: up to 20 lower-case letters and digits.
	ID string `json:"id"`
	// Kubeconfig and Context are as kubectl's flags; empty for what kubectl would use.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	Context    string `json:"context,omitempty"`
	// Namespace is that of the context if it is empty.
	Namespace string `json:"namespace,omitempty"`
}

// Run is a program and its machines.
type Run struct {
	// Image has Command, and RaylinkImage the command line of this version; they may be the same.
	Image        string   `json:"image"`
	RaylinkImage string   `json:"raylink_image"`
	Command      []string `json:"command"`
	Groups       []Group  `json:"groups"`
	// Restarts is how many machines may be lost, together, before that ends the run.
	Restarts int `json:"restarts"`
	// JoinSeconds bounds how long the machines may take to join.
	JoinSeconds int64 `json:"join_seconds"`
	// MappedBytes is the size of the file system in memory that each machine maps files in.
	MappedBytes int64 `json:"mapped_bytes"`
	// GPUResource is what Kubernetes calls a GPU, such as nvidia.com/gpu.
	GPUResource string `json:"gpu_resource"`
	// PKI are the files of the run's CA by name, and Token is the secret that machines join by.
	// Both are absent from a plan.
	PKI   map[string][]byte `json:"pki,omitempty"`
	Token string            `json:"token,omitempty"`
	// Detach leaves the run behind.
	Detach bool `json:"detach,omitempty"`
}

// Group is a number of machines that are alike.
type Group struct {
	Name      string            `json:"name"`
	Machines  int               `json:"machines"`
	Resources machine.Resources `json:"resources,omitempty"`
	Labels    machine.Labels    `json:"labels,omitempty"`
}

// Result is how an operation has ended.
type Result struct {
	// Target has the namespace that was used.
	Target Target `json:"target"`
	// Running is set while the program has not ended, and Gone if the run is not there any more.
	Running bool `json:"running,omitempty"`
	Gone    bool `json:"gone,omitempty"`
	// Exit is the program's exit code, and Error why there is none or the run ended before it.
	Exit  int    `json:"exit"`
	Error string `json:"error,omitempty"`
}
