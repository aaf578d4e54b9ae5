package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// small returns scaled-down variants of the real rows, just large enough to exercise them.
func small() []row {
	// Programs are built by TestProgramsWithGeneratedCodeCompile.
	rs := slices.DeleteFunc(rows(), func(r row) bool { return r.job.Kind == codeImported || r.job.Kind == codeUsed })
	for i := range rs {
		j := &rs[i].job
		if rs[i].replay.bytes != 0 {
			rs[i].replay.bytes = min(rs[i].replay.bytes, 8<<20)
			rs[i].replay.items = min(rs[i].replay.items, 2000)
		}
		switch j.Kind {
		case connections, nodes:
			j.Inflight = 20
		case pluginTime:
			j.Size /= 100
		case registered, memoryOfNodes, lookedUp, recovered:
			j.Inflight, j.Size = 20, 4
		case storedKeys:
			j.Inflight = 2000
		default:
			j.Inflight, j.Size = min(j.Inflight, 8), min(j.Size, 128<<10)
		}
	}
	return rs
}

// TestEveryCell runs every system on every row, in separate processes as the benchmark does.
func TestEveryCell(t *testing.T) {
	if testing.Short() {
		t.Skip("starts some twenty processes")
	}
	d, err := newDriver(options{rounds: 1, duration: 5 * time.Millisecond}, t.Output())
	require.NoError(t, err)
	res, err := d.run(t.Context(), small())
	require.NoError(t, err)
	require.Empty(t, res.failed)
	require.NoError(t, d.close())
	assert.NoDirExists(t, d.dir)

	lines := res.lines()
	got := make(map[cell]line)
	for _, l := range lines {
		got[cell{l.Name, l.System}] = l
	}
	var absent []string
	for _, r := range small() {
		for _, system := range r.systems {
			l, ok := got[cell{r.name, system}]
			require.True(t, ok, "row %s has no result of %s", r.name, system)
			if l.Missing != "" && (optional(system) || r.name == rayUp) { // which needs Ray for both systems
				absent = append(absent, " x "+system)
				t.Logf("%s without %s: %s", r.name, system, l.Missing)
				continue
			}
			if r.size() || r.code() || r.job.Kind == psMemory || r.job.Kind == memoryOfNodes {
				continue // meaningless with so few of them
			}
			if r.storage.work == memoryWork {
				assert.Positive(t, l.Value)
				continue // it has no latency
			}
			assert.Positive(t, l.Value, "%s of %s", r.name, system)
			assert.Positive(t, l.P50, "%s of %s", r.name, system)
			assert.GreaterOrEqual(t, l.P99, l.P50, "%s of %s", r.name, system)
		}
	}
	for _, target := range res.targets(lines) {
		if target.what == "code/imported" || target.what == "code/used" ||
			slices.ContainsFunc(absent, func(system string) bool { return strings.HasSuffix(target.goal, system) }) {
			continue
		}
		assert.True(t, target.measured, "%s, %s", target.what, target.goal)
	}

	picture := filepath.Join(t.TempDir(), "plot.png")
	require.NoError(t, draw(lines, machine(time.Now()), picture))
	info, err := os.Stat(picture)
	require.NoError(t, err)
	assert.Positive(t, info.Size())
	require.NoError(t, draw(servicesOf(lines), machine(time.Now()), picture))
}

// optional reports whether a system takes part only where it is installed.
func optional(system string) bool {
	return slices.Contains([]string{raySystem, redisSystem, redisPipelined, rueidisSystem}, system)
}

// servicesOf returns the lines of the services.
func servicesOf(lines []line) []line {
	return slices.DeleteFunc(slices.Clone(lines), func(l line) bool { return !ofService(l) })
}

// TestProgramsWithGeneratedCodeCompile checks what the rows about the size of code build, without
// the time that linking takes.
func TestProgramsWithGeneratedCodeCompile(t *testing.T) {
	module, err := moduleDir()
	require.NoError(t, err)
	for system, parts := range codeSystems {
		for _, k := range []kind{codeNone, codeImported, codeUsed} {
			source := filepath.Join(t.TempDir(), "main.go")
			require.NoError(t, os.WriteFile(source, []byte(parts.program(k)), 0o600))
			vet := exec.CommandContext(t.Context(), "go", "vet", source)
			vet.Dir = module
			out, err := vet.CombinedOutput()
			require.NoError(t, err, "%s, %s: %s\n%s", system, k, out, parts.program(k))
		}
	}
}

// TestOutput checks the format of the output: JSON, one object per line, then the tables.
func TestOutput(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), []string{"-bench=rpc/unary/16B/inflight=1$", "-systems=floor,floor-sync", "-rounds=3", "-duration=5ms"}, &out, t.Output())
	require.NoError(t, err)
	objects, tables, ok := strings.Cut(out.String(), "\n\n")
	require.True(t, ok)
	lines := strings.Split(objects, "\n")
	require.Len(t, lines, 2)
	for i, system := range []string{"floor", "floor-sync"} {
		var object map[string]any
		require.NoError(t, json.Unmarshal([]byte(lines[i]), &object))
		assert.Equal(t, "rpc/unary/16B/inflight=1", object["name"])
		assert.Equal(t, system, object["system"])
		assert.Equal(t, "calls/s", object["unit"])
		for _, figure := range []string{"value", "p50_us", "p99_us", "allocs", "floor"} {
			assert.IsType(t, 0.0, object[figure], figure)
		}
	}
	for _, word := range []string{"go1.", "20", "floor-sync", "p99 us"} {
		assert.Contains(t, tables, word)
	}
}

// TestEarlierRunIsSummarized presents the printed output of an earlier run without measuring again.
func TestEarlierRunIsSummarized(t *testing.T) {
	dir := t.TempDir()
	printed, table, picture := filepath.Join(dir, "out.txt"), filepath.Join(dir, "table.md"), filepath.Join(dir, "plot.png")
	const row = "rpc/unary/16B/inflight=64"
	var out bytes.Buffer
	require.NoError(t, printJSON(&out, []line{
		{Name: row, System: "raylink", Unit: "calls/s", Value: 123456, P50: 78.9}, {Name: row, System: "grpc-go", Unit: "calls/s", Value: 4321, P50: 999},
	}))
	out.WriteString("\nsome machine\n\n  a table for people\n")
	require.NoError(t, os.WriteFile(printed, out.Bytes(), 0o600))
	require.NoError(t, run(t.Context(), []string{"-read=" + printed, "-plot=" + picture, "-summary=" + table}, t.Output(), t.Output()))
	require.FileExists(t, picture)
	summary, err := os.ReadFile(table)
	require.NoError(t, err)
	require.Contains(t, string(summary), "| `unary/16B/inflight=64` | calls/s | 123,456 | 4,321 | - | - | - | - | 78.9 | 999 |")
	require.ErrorContains(t, run(t.Context(), []string{"-read=" + printed + ".none"}, t.Output(), t.Output()), "none")
}

func TestWrongFlags(t *testing.T) {
	for _, args := range [][]string{{"-bench=rpc/none"}, {"-bench=("}, {"-systems=none"}, {"-rounds=0"}, {"-duration=0s"}, {"-unknown"}} {
		require.Error(t, run(t.Context(), args, t.Output(), t.Output()), args)
	}
}

func TestSelected(t *testing.T) {
	names := func(pattern string) (names []string) {
		found, err := selected(rows(), pattern)
		require.NoError(t, err)
		for _, r := range found {
			names = append(names, r.name)
		}
		return names
	}
	assert.Len(t, names(""), len(rows()))
	assert.Equal(t, []string{"rpc/unary/16B/inflight=1", "rpc/unary/16B/inflight=64", "rpc/unary/16B/inflight=512"}, names("rpc/unary/16B"))
	assert.Equal(t, []string{"rpc/local/mailbox", "rpc/local/concurrent"}, names("local"))
	assert.Equal(t, []string{"rpc/unix/16B/inflight=1", "rpc/unix/16B/inflight=512"}, names("^rpc/unix"))
}

// TestSlowFloor tests the rule that makes a run fail.
func TestSlowFloor(t *testing.T) {
	const name = "rpc/unary/16B/inflight=1"
	for _, test := range []struct {
		what   string
		values map[string]float64
		slow   []string
	}{
		{"the floor is the fastest", map[string]float64{"raylink": 9, "grpc-go": 5, "floor": 10, "floor-sync": 8}, nil},
		{"the other floor is the fastest", map[string]float64{"raylink": 9, "grpc-go": 5, "floor": 8, "floor-sync": 10}, nil},
		{"a peer is faster", map[string]float64{"raylink": 9, "grpc-go": 11, "floor": 10, "floor-sync": 8}, []string{"grpc-go"}},
		{"RayLink is faster", map[string]float64{"raylink": 12, "drpc": 5, "floor": 10}, nil},
		{"RayLink and a peer are faster", map[string]float64{"raylink": 12, "drpc": 11, "floor": 10}, []string{"drpc"}},
		{"there is no floor", map[string]float64{"raylink": 12, "drpc": 11}, nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			res := newResults([]row{{name: name}})
			for system, v := range test.values {
				// The median counts: a single outlier has no effect.
				for _, round := range []float64{v, v, 100} {
					res.add(name, system, figures{value: round})
				}
			}
			slow := slowFloors(res.lines())
			require.Len(t, slow, len(test.slow))
			for i, system := range test.slow {
				assert.Contains(t, slow[i], name+": "+system)
			}
		})
	}
}

// TestSizesHaveNoSlowFloor checks the share of a row in bytes: the floor's bytes over the system's.
func TestSizesHaveNoSlowFloor(t *testing.T) {
	res := newResults([]row{{name: "idle", unit: "bytes each", job: job{Kind: connections}}})
	res.add("idle", "floor", figures{value: 10})
	res.add("idle", "raylink", figures{value: 40})
	res.add("idle", "drpc", figures{value: 5})
	lines := res.lines()
	require.Len(t, lines, 3)
	assert.InDelta(t, 0.25, lines[0].Floor, 1e-9)
	assert.Empty(t, slowFloors(lines))
}

// TestFailureIsReportedAndSkipped checks that a failing system costs only its own results, and
// makes the run fail.
func TestFailureIsReportedAndSkipped(t *testing.T) {
	d, err := newDriver(options{rounds: 1, duration: 5 * time.Millisecond}, t.Output())
	require.NoError(t, err)
	res, err := d.run(t.Context(), []row{
		// The floor does not implement this row.
		{name: "a", network: "tcp", systems: []string{"floor-sync"}, job: job{Kind: stuck, Inflight: 1}},
		{name: "b", network: "tcp", systems: []string{"floor-sync"}, job: job{Kind: unary, Size: 16, Inflight: 1}},
	})
	require.NoError(t, err)
	require.NoError(t, d.close())
	require.Len(t, res.failed, 1)
	require.ErrorContains(t, res.failed[0], "floor-sync on a")
	lines := res.lines()
	require.Len(t, lines, 1)
	assert.Equal(t, "b", lines[0].Name)
}
