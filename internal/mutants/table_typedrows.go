package mutants

// ofTypedRows returns the mutants of typed rows, and of writing them in place.
func ofTypedRows() []Mutant {
	const (
		inPlace     = "services/replay/ring/inplace.go"
		writer      = "services/replay/ring/writer.go"
		participant = "services/replay/ring/participant.go"
	)
	return []Mutant{
		{
			Name: "inplace/areas-activated-after-the-reservation-are-ignored",
			Edit: Edit{File: inPlace, Func: "InPlace.lockRun", Original: "r.epoch() == a.epoch", Mutated: "true"},
			Test: "TestAreaHeldAfterRowsWereReserved",
		},
		{
			Name: "inplace/rows-written-in-part-become-readable-again",
			Edit: Edit{File: inPlace, Func: "InPlace.fill", Original: "p.abandon(inPlace)", Mutated: "p.abandon(false)"},
			Test: "TestRowsAbandonedInPlace",
		},
		{
			Name: "inplace/rows-not-written-to-are-lost",
			Edit: Edit{File: inPlace, Func: "InPlace.fill", Original: "p.abandon(inPlace)", Mutated: "p.abandon(true)"},
			Test: "TestRowsAbandonedInPlace",
		},
		{
			Name: "inplace/refused-write-keeps-its-rows",
			Edit: Edit{File: inPlace, Func: "InPlace.lock", Original: "p.abandon(false)", Mutated: "p.abandon(true)"},
			Test: "TestRefusedWriteInPlaceRestoresRows",
		},
		{
			Name: "inplace/rows-around-the-end-count-as-contiguous",
			Edit: Edit{File: inPlace, Func: "InPlace.contiguous", Original: "p.slot+n <= p.head.ring.head.layout.Capacity", Mutated: "p.slot < p.slot+n"},
			Test: "TestRowsAreWrittenInPlaceWhereTheyAreContiguous",
		},
		{
			Name: "inplace/rows-with-others-in-between-count-as-contiguous",
			Edit: Edit{File: inPlace, Func: "InPlace.contiguous", Original: "p.sequences[n-1]-first == n-1", Mutated: "p.sequences[n-1] >= first"},
			Test: "TestRowsAroundAnAreaAreNotContiguous",
		},
		{
			Name: "inplace/close-unmaps-rows-that-are-being-written",
			Edit: Edit{
				File: inPlace, Func: "InPlace.fill", Original: "written := false",
				Mutated: "written := false\n\tp.head.ring.held.Add(-1)\n\tdefer p.head.ring.held.Add(1)",
			},
			Test:   "TestRingClosedWhileRowsAreWritten",
			Prints: `unexpected fault address|index out of range|nil pointer`,
		},
		{
			Name: "inplace/restored-row-stays-a-dead-participants",
			Edit: Edit{File: writer, Func: "WriteHead.unlock", Original: "old = old.disowned()", Mutated: "_ = old.disowned()"},
			Test: "TestWriterKilledWhileItWritesInPlace",
		},
		{
			Name: "inplace/rows-of-the-dead-count-twice",
			Edit: Edit{
				File: "services/replay/ring/block.go", Func: "word.counted",
				Original: "w.readable() || w&writing != 0 && w.participant() != noParticipant", Mutated: "w.readable()",
			},
			Test: "TestRowsCountedAfterManyDeaths",
		},
		{
			Name: "inplace/disowned-rows-still-count",
			Edit: Edit{
				File: participant, Func: "Ring.cleanUp",
				Original: "r.blockFilled(slot >> blockShift).Add(^uint64(0))", Mutated: "_ = r.blockFilled",
			},
			Test: "TestRowsCountedAfterManyDeaths",
		},
		{
			Name: "typed/columns-of-another-shape-are-accepted",
			Edit: Edit{
				File: "services/replay/schema.go", Func: "compareColumns",
				Original: "!slices.Equal(e.Want.Shape, e.Got.Shape)", Mutated: "slices.Equal(e.Want.Shape, nil) && false",
			},
			Test: "TestOpenRefusesOtherColumns",
		},
		{
			Name: "typed/initial-values-are-not-set-in-place",
			Edit: Edit{
				File: "services/replay/typed.go", Func: "TypedWriter.fillColumns",
				Original: "w.typed.row.Initialize(columns)", Mutated: "_ = w.typed.row.Initialize",
			},
			Test: "TestTypedRowsRoundTrip",
		},
		{
			Name: "typed/node-writes-rows-one-by-one",
			Edit: Edit{File: "services/replay/node.go", Func: "node.Write", Original: "case req.GetTogether():", Mutated: "case req.GetTogether() && false:"},
			Test: "TestNodeWritesTogether",
		},
	}
}

// ofReservedRows returns the mutants of positions reserved for later writes, and of writes that
// rely on an earlier check of the node.
func ofReservedRows() []Mutant {
	const ahead = "services/replay/ring/ahead.go"
	return []Mutant{
		{
			Name: "inplace/reserved-positions-get-old",
			Edit: Edit{File: ahead, Func: "ahead.resume", Original: "<= k.lag", Mutated: "<= 1<<40"},
			Test: "TestReservedPositionsDoNotGetOld", Args: []string{shrinkBriefly},
		},
		{
			Name: "inplace/reserved-positions-get-old-in-the-usual-case",
			Edit: Edit{File: ahead, Func: "ahead.ready", Original: "<= k.lag", Mutated: "<= 1<<40"},
			Test: "TestReservedPositionsDoNotGetOld", Args: []string{shrinkBriefly},
		},
		{
			Name: "inplace/areas-activated-after-the-reservation-are-ignored-in-the-usual-case",
			Edit: Edit{
				File: "services/replay/ring/inplace.go", Func: "InPlace.lockAhead",
				Original: "r.epoch() != k.epoch", Mutated: "r.epoch() != k.epoch && false",
			},
			Test: "TestAreaOfRowsReservedAhead",
		},
		{
			Name: "inplace/rows-in-the-usual-case-are-not-older",
			Edit: Edit{
				File: "services/replay/ring/inplace.go", Func: "InPlace.lockAhead",
				Original: "old.sequencePlusOne() > mine.sequence()", Mutated: "false",
			},
			Test: "TestRowsOfALaterRoundAreNotOverwritten",
		},
		{
			Name: "inplace/areas-are-ignored-by-single-rows",
			Edit: Edit{
				File: "services/replay/ring/inplace.go", Func: "InPlace.lockOne",
				Original: "u.epoch.Load() != k.epoch", Mutated: "u.epoch.Load() != k.epoch && false",
			},
			Test: "TestAreaOfRowsReservedAhead",
		},
		{
			Name: "inplace/single-rows-are-not-older",
			Edit: Edit{
				File: "services/replay/ring/inplace.go", Func: "InPlace.lockOne", Original: "old >= mine.published()", Mutated: "false",
			},
			Test: "TestRowsOfALaterRoundAreNotOverwritten",
		},
		{
			Name: "inplace/positions-of-single-rows-get-old",
			Edit: Edit{
				File: "services/replay/ring/inplace.go", Func: "InPlace.lockOne", Original: "> k.lag", Mutated: "> 1<<40",
			},
			Test: "TestReservedPositionsDoNotGetOld", Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "inplace/single-rows-go-beyond-the-end",
			Edit: Edit{
				File: ahead, Func: "ahead.measure", Original: "r.head.layout.Capacity-k.slot", Mutated: "r.head.layout.Capacity",
			},
			Test: "TestReservedPositionsDoNotGetOld", Args: []string{shrinkBriefly}, Prints: `out of range`,
		},
		{
			Name: "inplace/close-ignores-the-marks-of-heads",
			Edit: Edit{
				File: "services/replay/ring/seat.go", Func: "Ring.unmapUnused",
				Original: "r.seats[i].busy.Load() != 0", Mutated: "r.seats[i].busy.Load() > 1",
			},
			Test:   "TestRingClosedWhileRowsAreWritten",
			Prints: `unexpected fault address|index out of range|nil pointer`,
		},
		{
			Name: "inplace/heads-share-a-seat",
			Edit: Edit{
				File: "services/replay/ring/seat.go", Func: "InPlace.sit", Original: "s.taken, p.seat", Mutated: "_, p.seat",
			},
			Test: "TestRowsOfManyHeadsAreCounted",
		},
		{
			Name: "inplace/nothing-is-reserved-for-later-writes",
			Edit: Edit{File: ahead, Func: "ahead.grow", Original: "k.size < k.most", Mutated: "k.size < k.most && false"},
			Test: "TestRowsOfOneWriterLieTogether",
		},
		{
			Name: "typed/slow-writers-trust-old-checks",
			Edit: Edit{
				File: "services/replay/client.go", Func: "trust.extend",
				Original: "now-t.checked < int64(recheckInterval)", Mutated: "true",
			},
			Test: "TestFewWritesAreAcknowledgedAfterTheNodesDeath",
		},
	}
}
