package mutants

import "time"

// killsTimeout bounds tests with random kills. They end when they detect the fault, most often
// within seconds, but several of them run at once.
const killsTimeout = 4 * time.Minute

// ofKilledReplays returns the mutants of the replay that take several processes: one for each of
// the promises that the checker checks.
func ofKilledReplays() []Mutant {
	const (
		ring    = "services/replay/ring/"
		table   = "services/replay/internal/table/"
		service = "services/replay/"
	)
	rows := []struct {
		name, file, function, original, mutated, prints string
		// args are those of the test, instead of a small number of rows and no kills of the node.
		args []string
	}{
		{
			name: "rows-are-read-while-they-are-written", file: ring + "word.go", function: "word.readable",
			original: "w != 0 && w&writing == 0", mutated: "w != 0", prints: `torn row|another generation|panicked`,
		},
		{
			name: "rows-are-readable-before-they-are-written", file: ring + "inplace.go", function: "InPlace.fill",
			original: "write(p.columns)", mutated: "p.publish(); write(p.columns)", prints: `torn row|another generation|panicked`,
		},
		{
			name: "rows-of-a-panic-become-readable", file: ring + "inplace.go", function: "InPlace.fill",
			original: "p.abandon(inPlace)", mutated: "p.publish()", prints: `panicked`,
		},
		{
			name: "rows-of-another-generation-are-read", file: ring + "at.go", function: "ReadHead.copyStretch",
			original: "!before[i].holds(first + uint64(i))", mutated: "!before[i].readable()",
			prints: `foreign row|another generation|instead of`,
		},
		{
			name: "items-lack-rows", file: service + "draw.go", function: "Sampler.withoutLost",
			original: "gone[i/length] = true", mutated: "_ = i", prints: `a row is missing`,
		},
		{
			name: "acknowledged-rows-are-lost", file: ring + "inplace.go", function: "InPlace.publish",
			original: "storeRelease(&words[i], uint64(mine))",
			mutated:  "if n := p.run.from + uint64(i); n%512 == 5 { p.head.disown(n) } else { storeRelease(&words[i], uint64(mine)) }",
			prints:   `an acknowledged row is lost`,
		},
		{
			name: "acknowledged-items-are-lost", file: service + "tables.go", function: "node.table",
			original: "t.Expire(oldest)", mutated: "t.Expire(oldest + n.ring.Layout().Capacity/2)", prints: `an acknowledged item is lost`,
		},
		{
			name: "priorities-get-to-other-items", file: table + "table.go", function: "Table.Update",
			original: "math.Abs(updated[i])", mutated: "math.Abs(updated[i%1])", prints: `priority of another one`,
		},
		{
			name: "keys-find-the-next-item-of-their-place", file: table + "item.go", function: "slots.find",
			original: "keyOf(number, slot) == key", mutated: "true", prints: `priority of another one`,
		},
		{
			name: "items-leave-no-queue", file: table + "table.go", function: "Table.draw",
			original: "t.remove(chosen[0].slot)", mutated: "_ = chosen", prints: `sampled twice|hang: `,
		},
		{
			name: "rows-of-areas-are-overwritten", file: ring + "area.go", function: "Ring.survey",
			original: "into < count", mutated: "into < count && false", prints: `in an area`,
		},
		{
			name: "rows-of-dead-writers-stay-locked", file: ring + "writer.go", function: "WriteHead.lockSlot",
			original: "abandoned && !r.knownDead(old.participant())", mutated: "abandoned", prints: `reservations are lost|hang: `,
		},
		{
			name: "stopped-writers-are-waited-for", file: ring + "writer.go", function: "WriteHead.lockSlot",
			original: "abandoned && !r.knownDead(old.participant())",
			mutated:  "abandoned { for !r.knownDead(old.participant()) && at.Load() == uint64(old) { runtime.Gosched() } }; if old != word(at.Load())",
			prints:   `hang: `, args: []string{"-rows=200000", "-stuck=5s"},
		},
		{
			name: "samplers-wait-for-a-dead-node", file: service + "draw.go", function: "Sampler.draw",
			original: "s.request(ctx, s.missing(), blocked)); err != nil {",
			mutated:  "s.request(ctx, s.missing(), blocked)); err != nil { if ctx.Err() == nil { continue }",
			prints:   `get no errors within a second`, args: []string{"-rows=2000", "-kills=1"},
		},
	}
	mutants := make([]Mutant, len(rows), len(rows)+1)
	for i, r := range rows {
		if r.args == nil {
			r.args = []string{"-rows=40000", "-kills=0"}
		}
		mutants[i] = Mutant{
			Name: "replay/kills/" + r.name,
			Edit: Edit{File: r.file, Func: r.function, Original: r.original, Mutated: r.mutated},
			Test: "TestReplaySurvivesKills", Package: "internal/replaytest", Prints: r.prints,
			Args: append([]string{failFast, "-test.count=8"}, r.args...), Timeout: killsTimeout,
		}
	}
	return append(mutants, Mutant{
		Name: "replay/kills/areas-of-dead-readers-are-held",
		Edit: Edit{
			File: ring + "area.go", Func: "Ring.reclaimDead",
			Original: "case r.self != noParticipant:", Mutated: "case r.self == noParticipant:",
		},
		Also: []Edit{{File: ring + "participant.go", Func: "Ring.cleanUp", Original: "mark.participant() == index", Mutated: "mark == 0"}},
		Test: "TestReplaySurvivesKills", Package: "internal/replaytest", Prints: `reservations are lost|hang: `,
		Args: []string{failFast, "-test.count=12", "-rows=80000", "-kills=0", "-stuck=10s"}, Timeout: killsTimeout,
	})
}

// ofKilledFiles returns the mutants of what a replay keeps, also with a file when its node is
// killed or stopped.
func ofKilledFiles() []Mutant {
	const (
		ring    = "services/replay/ring/"
		table   = "services/replay/internal/table/"
		service = "services/replay/"
	)
	kept := func(name, prints string, e Edit, also ...Edit) Mutant {
		return Mutant{
			Name: "replay/files/" + name, Edit: e, Also: also, Prints: prints,
			Test: "TestReplayWithFileSurvivesKills", Package: "internal/replaytest",
			Args: []string{failFast, "-test.count=8", "-rows=20000", "-kills=2", "-stuck=10s"}, Timeout: killsTimeout,
		}
	}
	aged := func(name, prints string, e Edit) Mutant {
		return Mutant{
			Name: "replay/ages/" + name, Edit: e, Prints: prints,
			Test: "TestItemsAreAtMostASecondOld", Package: "internal/replaytest", Args: []string{failFast, "-test.count=60"}, Timeout: killsTimeout,
		}
	}
	unmarked := func(function, slot string) Edit {
		return Edit{File: table + "table.go", Func: function, Original: "t.changes.mark(" + slot + ")", Mutated: "_ = " + slot}
	}
	seldom := Edit{File: service + "file.go", Original: "saveInterval = 250 * time.Millisecond", Mutated: "saveInterval = 20 * time.Second"}
	killed := func(name, prints string, e Edit) Mutant {
		return Mutant{
			Name: "replay/kills/" + name, Edit: e, Prints: prints,
			Test: "TestReplaySurvivesKills", Package: "internal/replaytest", Timeout: killsTimeout,
			Args: []string{failFast, "-test.count=20", "-rows=40000", "-kills=0"},
		}
	}
	return []Mutant{
		killed("acknowledged-priorities-are-lost", `acknowledged priority is lost`, Edit{
			File: table + "table.go", Func: "Table.Update",
			Original: "t.setPriority(u.slot, u.priority)", Mutated: "if u.slot%16 != 3 { t.setPriority(u.slot, u.priority) }",
		}),
		killed("deleted-items-stay", `deleted is there again`, Edit{
			File: table + "table.go", Func: "Table.Delete", Original: "t.remove(slot)", Mutated: "if slot < 1<<31 { continue }",
		}),
		kept("items-are-saved-too-seldom", `acknowledged (item|priority) is lost`, seldom),
		kept("new-items-are-not-saved", `an acknowledged item is lost|items were inserted`, unmarked("Table.place", "slot")),
		kept("clients-call-the-node-before", `hang: `, Edit{
			File: service + "client.go", Func: "Client.follow", Original: `known.Ref().NID() != ""`, Mutated: "false",
		}),
		kept("areas-of-dead-readers-are-held", `reservations are lost|hang: `, Edit{
			File: ring + "area.go", Func: "Ring.reclaimDead",
			Original: "case r.self != noParticipant:", Mutated: "case r.self == noParticipant:",
		}, Edit{File: ring + "participant.go", Func: "Ring.cleanUp", Original: "mark.participant() == index", Mutated: "mark == 0"}),
		kept("rows-of-dead-writers-stay-locked", `reservations are lost|hang: `, Edit{
			File: ring + "writer.go", Func: "WriteHead.lockSlot",
			Original: "abandoned && !r.knownDead(old.participant())", Mutated: "abandoned",
		}),
		aged("items-are-saved-too-seldom", `before the node was killed is lost`, seldom),
		aged("priorities-are-not-saved", `an update of .* is lost`, Edit{
			File: table + "table.go", Func: "Table.Update",
			Original: "t.setPriority(u.slot, u.priority)", Mutated: "if u.slot%16 != 3 { t.setPriority(u.slot, u.priority) }",
		}),
		aged("deleted-items-come-back", `a deletion of .* is lost`, Edit{
			File: table + "table.go", Func: "Table.Delete", Original: "t.remove(slot)", Mutated: "if slot%16 != 3 { t.remove(slot) }",
		}),
		{ // the tests of ages may not show it: a file that is written anew is right again
			Name: "replay/deletions-are-not-saved", Edit: unmarked("Table.release", "slot"),
			Test: "TestTableMatchesModel", Package: "services/replay/internal/table",
		},
		{
			Name: "replay/files/living-nodes-lose-them",
			Edit: Edit{File: service + "file.go", Func: "tryLockNodeFile", Original: "mapfile.Lock(f, lockOffset)", Mutated: "error(nil)"},
			Also: []Edit{{
				File: ring + "takeover.go", Func: "Ring.takeOver",
				Original: "mapfile.Lock(r.file, r.participantOffset(ownerIndex))", Mutated: "error(nil)",
			}},
			Test: "TestStoppedNodeKeepsItsFile", Package: "internal/replaytest", Prints: `failed_precondition`,
		},
		{
			Name: "replay/files/calls-outlast-their-context-while-the-node-is-stopped",
			Edit: Edit{
				File: service + "itemqueue.go", Func: "itemQueue.wait", Original: "return q.interrupted(ctx.Err(), begin)",
				Mutated: "<-changed",
			},
			Test: "TestStoppedNodeKeepsItsFile", Package: "internal/replaytest", Prints: `hang: `, Args: []string{"-stuck=10s"},
		},
	}
}

// ofReplayOrder returns the mutants of the order of rows: faults that the checker found.
func ofReplayOrder() []Mutant {
	return []Mutant{
		{
			Name: "ring/newest-rows-are-those-of-a-later-round",
			Edit: Edit{
				File: "services/replay/ring/reader.go", Func: "ReadHead.NewestBefore",
				Original: "h.copyDrawn(draw{slot, w}, into, rows)", Mutated: "h.copyRow(slot, into, rows)",
			},
			Test: "TestNewestRowsAreInOrderThoughWritersOvertake", Args: []string{failFast, "-test.count=50"},
		},
		{
			Name: "replay/large-writes-keep-reserved-numbers",
			Edit: Edit{
				File: "services/replay/typed.go", Func: "TypedWriter.appendLarge",
				Original: "w.inPlace.DropReserved()", Mutated: "_ = w.inPlace",
			},
			Test: "TestSequenceNumbersOfAWriterIncrease",
		},
	}
}
