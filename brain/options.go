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
	// Dir is the data directory. It is created if it does not exist, accessible to the user only.
	// If it is empty, Brain keeps everything in memory and loses it at the end of its process, as
	// an embedded Brain does.
	Dir string
	// FS is the file system that Dir is on. Default: the operating system's.
	FS vfs.FS
	// Lease is how long a host may be silent before it is declared dead: a network failure or
	// SIGSTOP is detected after Lease, at most a quarter of Grace later. Default 10s.
	Lease time.Duration
	// Grace is how long a host whose connection has closed may take to attach again before it is
	// declared dead. Default 750ms, so that the death of a process is detected within a second.
	Grace time.Duration
	// Reattach bounds the time that a healthy host takes to find a Brain that was restarted, or
	// that continues after it was suspended (SIGSTOP, a suspended machine). Until Lease and
	// Reattach have passed, no host is declared dead because it has not attached again. Default 5s:
	// the longest pause between two attempts (half a second), a dial and the handshake, on a busy
	// machine.
	Reattach time.Duration
	// Host is the host under which Brain itself is reached. It can be set later: see
	// [Brain.SetHost].
	Host *nodev1.HostInfo
	// Logger receives events of hosts, and the store's records. Default: [slog.Default].
	Logger *slog.Logger
	// MaxNodes is how many nodes may be alive at once. Default 1,048,576.
	MaxNodes int
	// MaxAttributeBytes bounds the attributes of one node, in bytes. Default 16 KiB.
	MaxAttributeBytes int
	// Tombstones and TombstoneAge bound how many dead nodes are remembered, with their causes, and
	// for how long. Defaults 4,096 and one hour.
	Tombstones   int
	TombstoneAge time.Duration
	// Requests and RequestAge bound how many registrations are remembered, so that repeating one
	// has no effect, and for how long. Defaults 16,384 and ten minutes.
	Requests   int
	RequestAge time.Duration
	// Web is the policy for HTTP clients that attaching hosts apply in addition to their own
	// options, so that they agree with Brain's listener: the browser origins that may call, and
	// whether responses are compressed. Default: nothing.
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

// String formats the options, one per line.
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
