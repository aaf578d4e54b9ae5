package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// target is a performance goal for RayLink.
type target struct {
	what string
	goal string
	// reached is the measured figure, and ok whether it meets the goal; measured is false if the
	// rows that it needs were not run.
	reached  string
	ok       bool
	measured bool
}

// figuresOf holds the lines that targets are computed from.
type figuresOf map[cell]line

// ratio returns a/b, or false if a figure is missing.
func ratio(a, b float64, both ...bool) (float64, bool) {
	for _, ok := range both {
		if !ok {
			return 0, false
		}
	}
	return a / b, b != 0
}

func (f figuresOf) of(row, system string) (line, bool) {
	l, ok := f[cell{row, system}]
	return l, ok && l.Missing == ""
}

// atLeast is a goal for a ratio of throughputs.
func (f figuresOf) atLeast(row, system string, times float64) target {
	mine, ok1 := f.of(row, "raylink")
	theirs, ok2 := f.of(row, system)
	r, ok := ratio(mine.Value, theirs.Value, ok1, ok2)
	return target{
		what: row, goal: fmt.Sprintf("at least %g x %s", times, system), reached: fmt.Sprintf("%.2f x", r), ok: r >= times, measured: ok,
	}
}

// atMost is a goal for a ratio of times.
func (f figuresOf) atMost(row, system, what string, of func(line) float64, times float64) target {
	mine, ok1 := f.of(row, "raylink")
	theirs, ok2 := f.of(row, system)
	r, ok := ratio(of(mine), of(theirs), ok1, ok2)
	return target{
		what: row, goal: fmt.Sprintf("%s at most %g x %s", what, times, system), reached: fmt.Sprintf("%.2f x", r), ok: r <= times, measured: ok,
	}
}

// within is a goal for two rows: neither is faster than the other by more than a factor.
func (f figuresOf) within(row, other string, times float64) target {
	a, ok1 := f.of(row, "raylink")
	b, ok2 := f.of(other, "raylink")
	r, ok := ratio(a.Value, b.Value, ok1, ok2)
	return target{
		what: row, goal: fmt.Sprintf("within %g x of %s", times, other), reached: fmt.Sprintf("%.2f x", r), ok: r <= times && r*times >= 1, measured: ok,
	}
}

// bound is a goal for a single figure.
func (f figuresOf) bound(row, goal, format string, of func(line) float64, fits func(float64) bool) target {
	return f.boundOf("raylink", row, goal, format, of, fits)
}

// boundOf is a goal for a single figure of a part of RayLink.
func (f figuresOf) boundOf(part, row, goal, format string, of func(line) float64, fits func(float64) bool) target {
	l, ok := f.of(row, part)
	v := of(l)
	return target{what: row, goal: goal, reached: fmt.Sprintf(format, v), ok: fits(v), measured: ok}
}

func p50(l line) float64    { return l.P50 }
func p99(l line) float64    { return l.P99 }
func value(l line) float64  { return l.Value }
func allocs(l line) float64 { return l.Allocs }

func below(bound float64) func(float64) bool { return func(v float64) bool { return v <= bound } }

// bulk is the goal for large messages: three times grpc-go, or nearly the floor if that is lower.
func (f figuresOf) bulk(row string) target {
	mine, ok1 := f.of(row, "raylink")
	grpc, ok2 := f.of(row, "grpc-go")
	least, ok3 := f.of(row, "floor")
	goal := min(3*grpc.Value, 0.9*least.Value)
	versusOwned := ""
	if owned, ok := f.of(row, "floor-owned"); ok {
		versusOwned = fmt.Sprintf(", %.2f x floor-owned", mine.Value/owned.Value)
	}
	return target{
		what: row, goal: "at least 3 x grpc-go or 0.9 x floor", ok: mine.Value >= goal, measured: ok1 && ok2 && ok3,
		reached: fmt.Sprintf("%.2f x grpc-go, %.2f x floor", mine.Value/grpc.Value, mine.Value/least.Value) + versusOwned,
	}
}

// targets evaluates the goals.
func (r *results) targets(lines []line) []target {
	f := make(figuresOf)
	for _, l := range lines {
		f[cell{l.Name, l.System}] = l
	}
	const one, many, most = "rpc/unary/16B/inflight=1", "rpc/unary/16B/inflight=64", "rpc/unary/16B/inflight=512"
	const outstanding = "rpc/async/16B/outstanding=10000"
	ts := []target{
		f.atLeast(many, "grpc-go", 5.5), f.atLeast(many, "connect-h2c", 15),
		f.atLeast(most, "grpc-go", 7), f.atLeast(most, "connect-h2c", 15),
		f.atMost(one, "grpc-go", "p50", p50, 0.5), f.atMost(one, "floor-sync", "p50", p50, 1.5), f.atMost(one, "grpc-go", "p99", p99, 0.7),
		r.asMany(f, outstanding, most), r.goroutines(outstanding),
		f.bulk("rpc/unary/64KiB/inflight=64"), f.bulk("rpc/unary/1MiB/inflight=64"),
		r.bounded("rpc/unary/1MiB/inflight=64", "rpc/unary/1MiB/inflight=512"),
		f.atLeast("rpc/stream/1KiB", "grpc-go", 3),
		f.bound("rpc/local/mailbox", "p50 at most 1 us", "%.2f us", p50, below(1)),
		f.bound("rpc/local/mailbox", "at most 2 allocations", "%.1f", allocs, below(2.05)),
		f.atMost("rpc/local/concurrent", plainCalls, "p50", p50, 4),
	}
	for _, row := range []string{one, many, most} {
		ts = append(ts, f.bound(row, "at most 12 allocations, both sides", "%.1f", allocs, below(12.05)))
	}
	return append(ts,
		f.bound("rpc/stuck/16B/inflight=64", "at least 0.8 x without the stream", "%.2f x", value, func(v float64) bool { return v >= 0.8 }),
		f.bound("rpc/idle/connections=1000", "at most 20,480 bytes each", "%.0f", value, below(20<<10)),
		f.bound("rpc/idle/nodes=10000", "at most 4,096 bytes each", "%.0f", value, below(4<<10)),
		f.bound("code/imported", "at most 500 bytes a method", "%.0f", value, below(500)),
		f.atMost("code/used", "connect-h2c", "bytes", value, 1),
		f.linear(),
		f.bound(pullSmall, "p50 at most 50 us", "%.1f us", p50, below(50)),
		f.bound(pullLarge, "p50 at most 50 us", "%.1f us", p50, below(50)),
		f.atLeast(pullReadLarge, mappedSystem, 0.7),
		f.atLeast(pushLarge, copySystem, 0.7), f.atLeast(pushRemote, tunnelSystem, 0.7),
		f.atLeast(deliverMedium, raySystem, 1.2), f.atLeast(deliverLarge, raySystem, 1.2),
		f.atLeast(pushMachines, tunnelSystem, 0.7),
		f.atMost(pushUplink, oneHopSystem, "p50", p50, 1.5),
		f.bound(memoryLarge, "captain and officer at most 4 sizes", "%.2f", value, below(4)),
		f.boundOf(pusherPart, memoryLarge, "pusher at most 2.2 sizes", "%.2f", value, below(2.2)),
		f.atLeast(incrCallers, redisSystem, 2), f.atLeast(incrCallers, rueidisSystem, 0.5),
		f.atLeast(incrConnections, redisSystem, 0.8), f.atLeast(incrAsync, redisPipelined, 0.4),
		f.atLeast(putAsync, raylinkMemory, 0.6), f.atLeast(putSync, pebbleSystem, 0.7),
		f.bound(memoryMillion, "at most 400 MiB", "%.0f MiB", value, below(400)),
		f.bound(reopenMillion, "first answer at most 3 s after the kill", "%.2f s", value, below(3)),
		f.atLeast(writeTiny, copySystem, 0.6), f.atLeast(writeSmall, copySystem, 0.85), f.atLeast(writeFrames, copySystem, 0.85),
		f.atLeast(writeWarm, copySystem, 0.6), f.atLeast(writeAreas, raylinkNone, 0.8),
		f.atLeast(sampleSmall, gatherSystem, 0.8), f.atLeast(sampleMedium, gatherSystem, 0.9),
		f.atMost(borrowMillion, readSystem, "p50", p50, 0.05),
		f.atLeast(fourProcesses, plainSystem, 0.6),
		f.atLeast(prioritizedRows, raylinkUniform, 0.4),
		f.atLeast(prioritizedKeys, treeSystem, 0.4), f.atLeast(updatedKeys, treeSystem, 0.3),
		f.within(manySequences, fewSequences, 3),
		f.atMost(createOne, raylinkLocal, "p50", p50, 2), f.bound(createGang, "at most 1 s", "%.2f s", value, below(1)),
		f.atMost(sendProgram, onePassSystem, "p50", p50, 1.5),
		f.atLeast(tlsMany, "grpc-go", 6), f.atMost(tlsOne, "grpc-go", "p50", p50, 0.5), f.atLeast(tlsLarge, "floor", 0.8),
		f.bound(swarmRegister, "at least 5,000 a second", "%.0f", value, func(v float64) bool { return v >= 5000 }),
		f.bound(swarmMemory, "at most 1,024 bytes each", "%.0f", value, below(1<<10)),
		f.bound(swarmLookup, "at least 100,000 a second", "%.0f", value, func(v float64) bool { return v >= 100_000 }),
		f.bound(swarmRecover, "at most 10 s", "%.2f s", value, below(10)),
		f.atMost(rayUp, raySystem, "time", value, 1.5), f.atMost(rayCreate, raySystem, "p50", p50, 0.3),
		f.atLeast(rayCallSync, raySystem, 10), f.atLeast(rayCallAsync, raySystem, 20), f.atLeast(rayBroadcast, raySystem, 1),
		f.atLeast(remoteWrite, tunnelSystem, 0.7), f.atLeast(remoteSample, tunnelSystem, 0.7),
	)
}

// linear requires that the plugin needs no more time per file for many files than for few.
func (f figuresOf) linear() target {
	few, ok1 := f.of(fewFiles, "raylink")
	many, ok2 := f.of(fourTimesFiles, "raylink")
	times, ok := ratio(many.Value, few.Value, ok1, ok2)
	return target{
		what: fourTimesFiles, goal: "a file at most 1.5 x one of 500", reached: fmt.Sprintf("%.2f x", times), ok: times <= 1.5, measured: ok,
	}
}

// asMany compares two rows of RayLink.
func (r *results) asMany(f figuresOf, row, other string) target {
	a, ok1 := f.of(row, "raylink")
	b, ok2 := f.of(other, "raylink")
	times, ok := ratio(a.Value, b.Value, ok1, ok2)
	return target{what: row, goal: "at least 1 x 512 in flight", reached: fmt.Sprintf("%.2f x", times), ok: times >= 1, measured: ok}
}

// goroutines checks the number of the client's goroutines while calls are outstanding.
func (r *results) goroutines(row string) target {
	most := 0
	fs := r.figures[cell{row, "raylink"}]
	for _, f := range fs {
		most = max(most, f.goroutines)
	}
	return target{what: row, goal: "no goroutine per call", reached: fmt.Sprintf("%d in all", most), ok: most < 1000, measured: len(fs) > 0}
}

// bounded compares the memory of both sides with few and with many calls.
func (r *results) bounded(few, many string) target {
	most := func(row string) (peak uint64) {
		for _, f := range r.figures[cell{row, "raylink"}] {
			peak = max(peak, f.peak)
		}
		return peak
	}
	a, b := most(few), most(many)
	return target{
		what: many, goal: "memory at most twice that of 64", reached: fmt.Sprintf("%d and %d MiB", a>>20, b>>20), ok: b <= 2*a, measured: a > 0 && b > 0,
	}
}

func printTargets(w io.Writer, ts []target) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	begun := false
	for _, target := range ts {
		if !target.measured {
			continue
		}
		if !begun {
			fmt.Fprintln(t, "\nrow\tgoal\tmeasured\t")
			begun = true
		}
		verdict := "missed"
		if target.ok {
			verdict = "reached"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", target.what, target.goal, target.reached, verdict)
	}
	return t.Flush()
}
