package brain

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"github.com/raylink/raylink/brain/internal/tree"
	brainv1 "github.com/raylink/raylink/gen/raylink/brain/v1"
	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// Options configures a Brain. The zero value of a field means its default.
type Options struct {
	// Dir is the data directory; it is made where it doesn't exist, for the user alone. Empty means
	// that Brain keeps everything in memory and ends with its process, as an embedded one does with
	// its driver.
	Dir string
	// FS is the file system that Dir is on. Default: the operating system's.
	FS vfs.FS
	// Lease is how long a host may be silent before it is declared dead: a death by network or
	// SIGSTOP is noticed after Lease, and at most a quarter of Grace later. Default 10s.
	Lease time.Duration
	// Grace is how long a host whose connection has closed has to attach again before it is
	// declared dead. Default 750ms, so that the death of a process is noticed within a second.
	Grace time.Duration
	// Reattach bounds the time that a healthy host takes to find a Brain that was started again, or
	// that goes on after it was stopped (SIGSTOP, a suspended machine). Until Lease and Reattach
	// are over no host is declared dead for not having come back. Default 5s: the longest pause
	// between two attempts (half a second), a dial and the handshake, on a busy machine.
	Reattach time.Duration
	// Host is where Brain itself can be reached. It can be set later: see [Brain.SetHost].
	Host *nodev1.HostInfo
	// Logger gets what happens to hosts, and what the store has to say. Default: [slog.Default].
	Logger *slog.Logger
	// MaxNodes is how many nodes may live at once. Default 1,048,576.
	MaxNodes int
	// MaxAttributeBytes bounds the attributes of one node. Default 16 KiB.
	MaxAttributeBytes int
	// Tombstones and TombstoneAge say how many dead nodes are remembered, with how they died, and
	// how long. Defaults 4,096 and one hour.
	Tombstones   int
	TombstoneAge time.Duration
	// Requests and RequestAge say how many registrations are remembered, so that a retry of one is
	// harmless, and how long. Defaults 16,384 and ten minutes.
	Requests   int
	RequestAge time.Duration
	// Web is what the hosts that attach grant HTTP clients beside what their own options say, so
	// that they agree with Brain's listener: which browser origins may call, and whether responses
	// are compressed. Default: nothing.
	Web *brainv1.WebPolicy
	// Dial bounds the time that the gateway takes to connect to a host. Default 3s.
	Dial time.Duration
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" && o.FS == nil {
		o.Dir, o.FS = "brain", vfs.NewMem()
	}
	if o.Dir == "" {
		return o, errors.New("open Brain: a file system needs a directory on it")
	}
	o.Lease = cmp.Or(o.Lease, 10*time.Second)
	o.Grace = cmp.Or(o.Grace, 750*time.Millisecond)
	o.Reattach = cmp.Or(o.Reattach, 5*time.Second)
	o.MaxNodes = cmp.Or(o.MaxNodes, 1<<20)
	o.MaxAttributeBytes = cmp.Or(o.MaxAttributeBytes, 16<<10)
	o.Tombstones = cmp.Or(o.Tombstones, 4096)
	o.TombstoneAge = cmp.Or(o.TombstoneAge, time.Hour)
	o.Requests = cmp.Or(o.Requests, 16384)
	o.RequestAge = cmp.Or(o.RequestAge, 10*time.Minute)
	o.Dial = cmp.Or(o.Dial, 3*time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	for _, field := range []struct {
		name  string
		value int64
	}{
		{"Lease", int64(o.Lease)},
		{"Grace", int64(o.Grace)},
		{"Reattach", int64(o.Reattach)},
		{"MaxNodes", int64(o.MaxNodes)},
		{"MaxAttributeBytes", int64(o.MaxAttributeBytes)},
		{"Tombstones", int64(o.Tombstones)},
		{"TombstoneAge", int64(o.TombstoneAge)},
		{"Requests", int64(o.Requests)},
		{"RequestAge", int64(o.RequestAge)},
		{"Dial", int64(o.Dial)},
	} {
		if field.value < 0 {
			return o, fmt.Errorf("open Brain: the option %s is negative", field.name)
		}
	}
	if o.Host != nil {
		if err := tree.CheckHost("host", o.Host); err != nil {
			return o, fmt.Errorf("open Brain: %w", err)
		}
		o.Host = proto.CloneOf(o.Host)
	}
	return o, nil
}

// String prints the options, one a line.
func (o Options) String() string {
	var text strings.Builder
	dir := o.Dir
	if _, inMemory := o.FS.(*vfs.MemFS); inMemory || dir == "" {
		dir = "(in memory)"
	}
	fmt.Fprintf(&text, "dir = %s\n", dir)
	fmt.Fprintf(&text, "lease = %v\ngrace = %v\nreattach = %v\n", o.Lease, o.Grace, o.Reattach)
	fmt.Fprintf(&text, "host = %s\n", o.Host.GetAddress())
	fmt.Fprintf(&text, "max_nodes = %d\nmax_attribute_bytes = %d\n", o.MaxNodes, o.MaxAttributeBytes)
	fmt.Fprintf(&text, "tombstones = %d\ntombstone_age = %v\n", o.Tombstones, o.TombstoneAge)
	fmt.Fprintf(&text, "requests = %d\nrequest_age = %v\n", o.Requests, o.RequestAge)
	fmt.Fprintf(&text, "dial = %v\n", o.Dial)
	return text.String()
}
