package mutants

// ofPublicTables returns the mutants that the tests of tables through the public API detect, and
// those of what a test leaves behind.
func ofPublicTables() []Mutant {
	const (
		replay  = "services/replay/"
		limiter = replay + "internal/table/limiter.go"
		search  = "TestExactlyLimitersThatDeadlockAreRefused"
	)
	args := []string{shrinkBriefly}
	model := func(name string, e Edit) Mutant {
		return Mutant{Name: "replay/" + name, Edit: e, Package: replay, Test: "TestTablesMatchTheirModel", Args: args, Timeout: limit}
	}
	return []Mutant{
		model("updates-by-keys-of-another-table", Edit{File: replay + "item.go", Func: "Key.in", Original: "k.table != table", Mutated: "false"}),
		model("updates-by-keys-of-another-ring", Edit{
			File: replay + "tables.go", Func: "node.keysOf", Original: "!n.isRing(req.GetRingId())", Mutated: "false",
		}),
		model("removers-are-samplers", Edit{File: replay + "tablemessage.go", Func: "tableConfig", Original: "c.GetRemover()", Mutated: "c.GetSampler()"}),
		model("tables-keep-items-of-overwritten-rows", Edit{
			File: replay + "tables.go", Func: "node.table", Original: "t.Expire(oldest)", Mutated: "_ = oldest",
		}),
		model("limiters-keep-counting", Edit{
			File: replay + "internal/table/table.go", Func: "Table.SetLimiter", Original: "newLimit(l, t.size)", Mutated: "limit{Limiter: l}",
		}),
		model("callers-have-no-names", Edit{
			File: replay + "itemqueue.go", Func: "itemQueue.send", Original: "Caller: q.caller", Mutated: "Caller: q.config.Name",
		}),
		{
			Name: "replay/overwritten-items-do-not-count-towards-the-minimum",
			Edit: Edit{File: limiter, Func: "limit.minimum", Original: "size+l.lost", Mutated: "size"},
			Test: "TestMinimumSizeIsReachedWhateverTheEpisodes", Package: replay, Timeout: limit,
		},
		{
			Name: "replay/samples-do-not-say-that-they-were-held",
			Edit: Edit{File: replay + "internal/table/table.go", Func: "Table.draw", Original: "w.ready != nil", Mutated: "false"},
			Test: "TestSamplesHaveAllFields", Package: replay,
		},
		{
			Name: "replay/errors-of-configurations-have-no-type",
			Edit: Edit{File: replay + "file.go", Func: "CreateError", Original: "return ringError(err)", Mutated: "return err"},
			Test: "TestRefusedReplaysMakeNothing",
		},
		{
			Name: "replay/lack-of-space-has-no-type",
			Edit: Edit{File: replay + "checkpoint.go", Func: "checkpointReason", Original: "errors.Is(err, ErrNoSpace)", Mutated: "false"},
			Test: "TestReplaysThatDoNotFitAreRefused", Alone: true,
		},
		{
			Name: "replay/refused-updates-change-the-first-items",
			Edit: Edit{
				File: replay + "internal/table/table.go", Func: "Table.Update", Original: "err := t.validate(i, p); err != nil",
				Mutated: "err := t.validate(i, p); err != nil && i == 0",
			},
			Test: "TestRefusedCallsChangeNothing", Package: replay,
		},
		{
			Name: "table/buffers-block-both-at-once",
			Edit: Edit{File: limiter, Func: "Limiter.ratioProblem", Original: "2*l.Buffer < 1+l.Ratio", Mutated: "2*l.Buffer < l.Ratio"},
			Test: search,
		},
		{
			Name: "table/larger-buffers-than-needed",
			Edit: Edit{File: limiter, Func: "Limiter.ratioProblem", Original: "2*l.Buffer < 1+l.Ratio", Mutated: "l.Buffer < 1+l.Ratio"},
			Test: search,
		},
		{
			Name: "table/inserts-wait-in-an-empty-table",
			Edit: Edit{File: limiter, Func: "limit.canInsert", Original: "!drawable || !l.minimum(size)", Mutated: "size > 0 && !l.minimum(size)"},
			Test: "TestTableMatchesModel",
		},
		{
			Name: "table/calls-that-wait-ignore-those-before",
			Edit: Edit{
				File: replay + "internal/table/wait.go", Func: "Table.blockedBehind", Original: "t.limit.forInserts(ahead+w.left(), t.size)",
				Mutated: "t.limit.forInserts(w.left(), t.size)",
			},
			Test: "TestCallsThatWaitNeedWhatThoseBeforeThemNeed",
		},
		{
			Name: "leaktest/mappings-stay",
			Edit: Edit{File: replay + "client.go", Func: "Client.Close", Original: "return m.ring.Close()", Mutated: "return nil"},
			Test: "TestReadsOfNoRows", Prints: `left behind: .*mapping of .*\.ring`,
		},
		{
			Name: "leaktest/files-stay-open",
			Edit: Edit{
				File: replay + "file.go", Func: "openFile.close", Original: "f.log.Close()", Mutated: "error(nil)",
			},
			Test: "TestNextNodeTakesOverTheFile", Prints: `left behind: .*open file .*\.items`,
		},
	}
}
