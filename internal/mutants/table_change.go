package mutants

// ofChanges returns the mutants of changes of existing rows.
func ofChanges() []Mutant {
	const (
		change = "services/replay/ring/change.go"
		client = "services/replay/change.go"
	)
	return []Mutant{
		{
			Name: "ring/rows-of-areas-change",
			Edit: Edit{File: change, Func: "WriteHead.changeRow", Original: "r.inArea(slot)", Mutated: "r.inArea(slot) && false"},
			Test: "TestRowsOfAreasDoNotChange",
		},
		{
			Name: "ring/words-of-changed-rows-recur",
			Edit: Edit{File: change, Func: "WriteHead.changeRow", Original: "old.changed()", Mutated: "old"},
			Test: "TestRowsChangeALimitedNumberOfTimes",
		},
		{
			Name: "ring/rows-change-without-limit",
			Edit: Edit{File: change, Func: "WriteHead.changeRow", Original: "old.changes() == maxChanges", Mutated: "false"},
			Test: "TestRowsChangeALimitedNumberOfTimes",
		},
		{
			Name: "ring/changes-are-read-halfway",
			Edit: Edit{
				File: change, Func: "WriteHead.changeRow",
				Original: "uint64(writingWord(c.Sequence, r.self))", Mutated: "uint64(old)",
			},
			Test: "TestLargeRowsAreNotReadHalfway",
		},
		{
			Name: "ring/changes-wait-for-dead-changers",
			Edit: Edit{File: change, Func: "WriteHead.changeRow", Original: "r.knownDead(old.participant())", Mutated: "false"},
			Test: "TestRowOfKilledChangerIsLost",
		},
		{
			Name: "ring/rows-that-are-being-changed-are-lost-to-readers",
			Edit: Edit{File: "services/replay/ring/at.go", Func: "ReadHead.copyNumbered", Original: "!w.unfinished(sequence)", Mutated: "true"},
			Test: "TestReaderWaitsForARowThatIsBeingChanged",
		},
		{
			Name: "replay/columns-that-were-left-alone-are-overwritten",
			Edit: Edit{
				File: client, Func: "change.difference",
				Original: "!bytes.Equal(a[i*size:(i+1)*size], b[i*size:(i+1)*size])", Mutated: "!bytes.Equal(a[:size], b[:0])",
			},
			Test: "TestChangesOfDifferentColumnsAreKept",
		},
		{
			Name: "replay/rows-of-another-ring-change",
			Edit: Edit{File: client, Func: "change.find", Original: "|| ch.keys[i].ring != ch.ring", Mutated: ""},
			Test: "TestChangedColumnsAreSampled",
		},
		{
			Name: "replay/keys-find-items-of-other-tables",
			Edit: Edit{File: "services/replay/item.go", Func: "Key.in", Original: "k.table != table", Mutated: "false"},
			Test: "TestKeysAreThoseOfTheirTable",
		},
		{
			Name: "replay/restarts-between-tables-are-searched-for-ever",
			Edit: Edit{File: "services/replay/change.go", Func: "change.find", Original: `ch.ring = ""`, Mutated: "_ = indexes"},
			Test: "TestChangeDuringARestart", Prints: `goroutine stack exceeds|--- FAIL: TestChangeDuringARestart`,
		},
		{
			Name: "ring/rows-that-change-are-lost-with-the-context",
			Edit: Edit{
				File: "services/replay/ring/at.go", Func: "ReadHead.At",
				Original: "err := ctx.Err(); err != nil { return nil, h.truncate(into, i,",
				Mutated:  "err := ctx.Err(); err != nil && i < 0 { return nil, h.truncate(into, i,",
			},
			Test: "TestRowsThatChangeAreNotLostWhenTheContextEnds",
		},
		{
			Name: "table/queues-wait-for-more-items-than-they-have",
			Edit: Edit{File: "services/replay/internal/table/limiter.go", Func: "Limiter.queueProblem", Original: "l.MinSize > l.Capacity", Mutated: "false"},
			Test: "TestLimitersThatDeadlockAreRefused",
		},
		{
			Name: "table/any-limiter-may-have-a-ratio",
			Edit: Edit{
				File: "services/replay/internal/table/limiter.go", Func: "Limiter.problem",
				Original: "l.Rule != PerInsert && (l.Ratio != 0 || l.Buffer != 0)", Mutated: "false",
			},
			Test: "TestLimitersThatDeadlockAreRefused",
		},
	}
}
