package mutants

// ofItems returns the mutants of items as writers create them and samplers read them.
func ofItems() []Mutant {
	const (
		at    = "services/replay/ring/at.go"
		item  = "services/replay/item.go"
		queue = "services/replay/itemqueue.go"

		draw = "services/replay/draw.go"
	)
	return []Mutant{
		{
			Name: "ring/rows-of-other-numbers-are-read",
			Edit: Edit{File: at, Func: "ReadHead.copyStretch", Original: "!before[i].holds(first + uint64(i))", Mutated: "!before[i].readable()"},
			Test: "TestRowsAreReadByTheirSequenceNumbers",
		},
		{
			Name: "ring/lost-rows-keep-what-the-batch-had",
			Edit: Edit{File: at, Func: "ReadHead.clearRows", Original: "clear(into.columns[c][from*size : (from+rows)*size])", Mutated: "_ = c*size"},
			Test: "TestRowsAreReadByTheirSequenceNumbers",
		},
		{
			Name: "replay/items-cross-an-episodes-end",
			Edit: Edit{File: item, Func: "history.last", Original: "!across", Mutated: "false"},
			Test: "TestItemsHaveTheWritersLastRows",
		},
		{
			Name: "replay/rows-of-another-ring-stay-in-the-history",
			Edit: Edit{File: item, Func: "history.add", Original: "id != h.ring", Mutated: "h.ring == \"\""},
			Test: "TestHistoryMatchesItsModel",
		},
		{
			Name: "replay/unconfirmed-items-are-not-bounded",
			Edit: Edit{File: queue, Func: "itemQueue.add", Original: "q.most-1", Mutated: "1<<30"},
			Test: "TestItemWaitsWhileTooManyAreUnconfirmed",
		},
		{
			Name: "replay/lost-items-are-not-reported",
			Edit: Edit{File: queue, Func: "itemQueue.taken", Original: "q.failure == nil", Mutated: "true"},
			Test: "TestUnconfirmedItemsAreReportedOnceTheNodeHasEnded",
		},
		{
			Name: "replay/waiting-calls-ignore-the-nodes-death",
			Edit: Edit{
				File: "services/replay/call.go", Func: "Client.whileServed",
				Original: "err == nil && orphaned", Mutated: "err == nil && orphaned && false",
			},
			Test: "TestCallsEndWithTheProcessOfTheNode",
		},
		{
			Name: "replay/items-get-rows-of-the-next-ring",
			Edit: Edit{File: "services/replay/tables.go", Func: "node.CreateItems", Original: "!n.isRing(req.GetRingId())", Mutated: "false"},
			Test: "TestItemsOfARingBeforeAreRefused",
		},
		{
			Name: "replay/overwritten-items-are-not-replaced",
			Edit: Edit{File: draw, Func: "Sampler.withoutLost", Original: "gone[i/length] = true", Mutated: "_ = i"},
			Test: "TestItemsOverwrittenBeforeTheyAreCopiedAreReplaced",
		},
		{
			Name: "replay/replaced-items-count-for-the-limiter",
			Edit: Edit{File: draw, Func: "Sampler.withoutLost", Original: "s.returned++", Mutated: "_ = s.returned"},
			Test: "TestItemsOverwrittenBeforeTheyAreCopiedAreReplaced",
		},
		{
			Name: "replay/shorter-items-move-when-a-longer-one-comes",
			Edit: Edit{File: "services/replay/sampledbatch.go", Func: "SampledBatch.lengthen", Original: "length == b.Length", Mutated: "true"},
			Test: "TestItemsOverwrittenBeforeTheyAreCopiedAreReplaced",
		},
		{
			Name: "replay/interrupted-draws-are-lost",
			Edit: Edit{File: draw, Func: "Sampler.fill", Original: "s.unfinished = b", Mutated: "_ = b"},
			Test: "TestNextSaysWhatItWaitsForAndGoesOn",
		},
		{
			Name: "replay/keys-of-the-replay-before-find-items",
			Edit: Edit{File: "services/replay/tables.go", Func: "node.keysOf", Original: "!n.isRing(req.GetRingId())", Mutated: "false"},
			Test: "TestSamplerGoesOnWithTheRestartedReplay",
		},
		{
			Name: "replay/refused-appends-are-history",
			Edit: Edit{File: "services/replay/typed.go", Func: "TypedWriter.append", Original: "w.write != nil", Mutated: "w.write != nil && n < 0"},
			Test: "TestRefusedAppendsAreNoHistory",
		},
		{
			Name: "replay/samples-of-another-ring-are-given-back",
			Edit: Edit{File: "services/replay/tables.go", Func: "node.SampleItems", Original: "n.isRing(req.GetRingId())", Mutated: "true"},
			Test: "TestSamplesOfARingBeforeAreNotGivenBack",
		},
	}
}
