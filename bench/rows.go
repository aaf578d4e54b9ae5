package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// row is one row of the comparison.
type row struct {
	name    string
	network string
	job     job
	unit    string
	// systems are the names of the systems that take part.
	systems []string
	// once makes one round suffice: the row has rounds of its own, or its result does not vary.
	once bool
	// with is a further pattern that selects the row; empty for none.
	with string
	// layout is how the processes of a row of the parameter server are placed; empty for others.
	layout layout
	// storage is the load of a row of the storage; its work is empty for others.
	storage storageLoad
	// replay is the load of a row of the replay; its size is 0 for others.
	replay replayLoad
}

// Rows of the plugin that are compared.
const (
	fewFiles       = "code/plugin/files=500"
	fourTimesFiles = "code/plugin/files=2000"
)

// Entries in a row that are no systems: a plain call of a Go interface, and Brain's share of the
// memory of a node.
const (
	plainCalls = "plain"
	brainPart  = "raylink-brain"
)

// size reports whether the row is measured in bytes, where fewer are better.
func (r *row) size() bool { return r.job.Kind == connections || r.job.Kind == nodes }

// code reports whether the row is about generated code.
func (r *row) code() bool {
	return r.job.Kind == codeImported || r.job.Kind == codeUsed || r.job.Kind == pluginTime
}

// parameters reports whether the row is about the parameter server.
func (r *row) parameters() bool { return r.layout != "" }

// value returns the result of one round.
func (r *row) value(o outcome) float64 {
	if r.job.Kind == stuck {
		return o.Ratio
	}
	perSecond := float64(o.Ops) / o.Seconds
	if r.unit == "MB/s" {
		return perSecond * float64(r.job.Size) / 1e6
	}
	return perSecond
}

var sizes = []struct { //nolint:gochecknoglobals // a table
	name  string
	bytes int
	unit  string
}{{"16B", 16, "calls/s"}, {"1KiB", 1 << 10, "calls/s"}, {"64KiB", 64 << 10, "MB/s"}, {"1MiB", 1 << 20, "MB/s"}}

// rows are all that are measured, in the order of the tables.
func rows() []row {
	all := []string{"raylink", "raylink-concurrent", "grpc-go", "connect-h1", "connect-h2c", "drpc", "floor"}
	alone := slices.Concat(all, []string{"floor-sync", "floor-polling"})
	rs := make([]row, 0, 32)
	for _, size := range sizes {
		for _, inflight := range []int{1, 64, 512} {
			r := row{
				name: fmt.Sprintf("rpc/unary/%s/inflight=%d", size.name, inflight), network: "tcp", unit: size.unit, systems: all,
				job: job{Kind: unary, Size: size.bytes, Inflight: inflight},
			}
			switch {
			case inflight == 1:
				r.systems = alone
			case size.bytes >= floorLarge:
				r.systems = slices.Concat(all, []string{"floor-owned"})
			}
			rs = append(rs, r)
		}
	}
	rs = append(rs,
		row{
			name: "rpc/async/16B/outstanding=10000", network: "tcp", unit: "calls/s", job: job{Kind: async, Size: 16, Inflight: 10000},
			// A node runs at most 1,024 concurrent methods at once (max_streams), and rejects more.
			systems: []string{"raylink", "grpc-go", "connect-h1", "connect-h2c", "drpc", "floor"},
		},
		row{
			name: "rpc/stream/1KiB", network: "tcp", unit: "messages/s", job: job{Kind: stream, Size: 1 << 10, Inflight: 1},
			systems: []string{"raylink", "grpc-go", "connect-h1", "connect-h2c", "drpc", "floor"},
		},
		row{name: "rpc/unix/16B/inflight=1", network: "unix", unit: "calls/s", systems: alone, job: job{Kind: unary, Size: 16, Inflight: 1}},
		row{name: "rpc/unix/16B/inflight=512", network: "unix", unit: "calls/s", systems: all, job: job{Kind: unary, Size: 16, Inflight: 512}},
		row{name: "rpc/local/mailbox", network: "tcp", unit: "calls/s", systems: []string{"raylink", plainCalls}, job: job{Kind: mailbox, Size: 16}},
		row{name: "rpc/local/concurrent", network: "tcp", unit: "calls/s", systems: []string{"raylink", plainCalls}, job: job{Kind: concurrent, Size: 16}},
		row{
			name: "rpc/stuck/16B/inflight=64", network: "tcp", unit: "of calls/s without", once: true, job: job{Kind: stuck, Size: 16, Inflight: 64},
			// The others use a connection per call.
			systems: []string{"raylink", "grpc-go", "connect-h2c"},
		},
		row{
			name: "rpc/idle/connections=1000", network: "tcp", unit: "bytes each", once: true, job: job{Kind: connections, Inflight: 1000},
			systems: []string{"raylink", "grpc-go", "connect-h1", "connect-h2c", "drpc", "floor"},
		},
		row{
			name: "rpc/idle/nodes=10000", network: "tcp", unit: "bytes each", once: true, job: job{Kind: nodes, Inflight: 10000},
			systems: []string{"raylink"},
		},
		row{name: "code/imported", unit: "bytes a method", once: true, job: job{Kind: codeImported}, systems: []string{"raylink", "grpc-go", "connect-h2c"}},
		row{name: "code/used", unit: "bytes a method", once: true, job: job{Kind: codeUsed}, systems: []string{"raylink", "grpc-go", "connect-h2c"}},
		row{name: fewFiles, unit: "us a file", job: job{Kind: pluginTime, Size: 500}, systems: []string{"raylink"}},
		row{name: fourTimesFiles, unit: "us a file", job: job{Kind: pluginTime, Size: 2000}, systems: []string{"raylink"}},
	)
	return slices.Concat(rs, psRows(), storageRows(), replayRows(), machinesRows(), tlsRows(), enginesRows())
}

// rowsOf returns the rows beside other buffers, or all others.
func rowsOf(buffers bool) []row {
	if buffers {
		return bufferRows()
	}
	return rows()
}

// selected returns the rows whose names begin with the pattern, or match it as a regular
// expression.
func selected(rs []row, pattern string) ([]row, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	var found []row
	for _, r := range rs {
		if strings.HasPrefix(r.name, pattern) || r.with == pattern || re.MatchString(r.name) {
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no row matches %q", pattern)
	}
	return found, nil
}
