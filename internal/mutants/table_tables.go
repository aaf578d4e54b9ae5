package mutants

// ofTables returns the mutants of a replay's tables: keys, selectors and expiry.
func ofTables() []Mutant {
	const (
		dir       = "services/replay/internal/table/"
		table     = dir + "table.go"
		limiter   = dir + "limiter.go"
		selector  = dir + "selector.go"
		tree      = dir + "tree.go"
		wheel     = dir + "wheel.go"
		state     = dir + "state.go"
		likeModel = "TestTableMatchesModel"
		likeScan  = "TestWheelMatchesScan"
	)
	const allowed = "!drawable || !l.minimum(size)" // inserts that need not wait
	args := []string{shrinkBriefly, manyChecks}
	model := func(name string, e Edit) Mutant {
		return Mutant{Name: "table/" + name, Edit: e, Test: likeModel, Args: args, Timeout: limit}
	}
	return []Mutant{
		model("keys-have-no-generation", Edit{File: dir + "item.go", Func: "slots.find", Original: "keyOf(number, slot) == key", Mutated: "key != 0"}),
		model("items-of-overwritten-rows-are-inserted", Edit{File: table, Func: "Table.add", Original: "it.Run.First < t.wheel.oldest", Mutated: "false"}),
		model("priority-zero-to-the-power-of-zero-is-one", Edit{File: selector, Func: "Selector.mass", Original: "priority == 0", Mutated: "false"}),
		model("invalid-priorities-are-set", Edit{File: table, Func: "Table.Update", Original: "t.validate(i, p)", Mutated: "t.validate(i, float64(0*int(p)))"}),
		model("weights-ignore-the-least-probability", Edit{File: table, Func: "Table.draw", Original: "least/c.probability", Mutated: "1/c.probability"}),
		model("items-are-drawn-twice-in-an-epoch", Edit{File: selector, Func: "shuffled.remove", Original: "hole < s.drawn", Mutated: "false"}),
		model("inserts-wait-before-the-minimum-size", Edit{File: limiter, Func: "limit.canInsert", Original: allowed, Mutated: "!drawable"}),
		model("inserts-wait-though-no-item-can-be-drawn", Edit{File: limiter, Func: "limit.canInsert", Original: allowed, Mutated: "!l.minimum(size)"}),
		model("updates-are-no-changes", Edit{File: table, Func: "Table.Update", Original: "t.changes.mark(u.slot)", Mutated: "_ = u"}),
		model("restored-items-have-no-order", Edit{File: state, Func: "Table.enter", Original: "return cmp.Compare(", Mutated: "return -cmp.Compare("}),
		model("root-of-a-grown-tree-is-empty", Edit{File: tree, Func: "sumTree.grow", Original: "s.touch(0)", Mutated: "_ = s"}),
		model("full-tables-evict-nothing", Edit{File: table, Func: "Table.add", Original: "t.size >= t.config.MaxItems", Mutated: "false"}),
		{
			Name: "table/rounding-reaches-a-zero",
			Edit: Edit{File: tree, Func: "descend", Original: "n[child] == 0", Mutated: "false"},
			Test: "TestZeroIsNeverDrawn", Args: args,
		},
		{
			Name: "table/highest-priority-is-not-corrected",
			Edit: Edit{
				File: tree, Func: "priorities.settle",
				Original: "e.high[n%fanout] != highest || e.low[n%fanout] != lowest",
				Mutated:  "e.high[n%fanout] < highest || e.low[n%fanout] != lowest",
			},
			Test: "TestExtremesMatchScan", Args: args,
		},
		{
			Name: "table/older-equals-stay",
			Edit: Edit{File: selector, Func: "heap.before", Original: "a.number < b.number", Mutated: "a.number > b.number"},
			Test: "TestRemoversHaveTheStatedDistribution",
		},
		{
			Name: "table/epochs-prefer-old-items",
			Edit: Edit{File: selector, Func: "shuffled.draw", Original: "random.Uint32N(left)", Mutated: "random.Uint32N(left+1)/2"},
			Test: "TestEpochsAreUniformPermutations",
		},
		{
			Name: "table/draws-are-not-proportional",
			Edit: Edit{File: tree, Func: "descend", Original: "return child, x - prefix[child]", Mutated: "return child, x - prefix[child]/2"},
			Test: "TestDrawsHaveTheStatedDistribution",
		},
		{
			Name: "table/all-items-of-a-bucket-expire",
			Edit: Edit{File: wheel, Func: "wheel.advance", Original: "it.first < oldest", Mutated: "true"},
			Test: likeScan, Args: args,
		},
		{
			Name: "table/lower-levels-do-not-expire",
			Edit: Edit{File: wheel, Func: "wheel.advance", Original: "w.expire(items, level, buckets, expire)", Mutated: "w.expire(items, level, 0, expire)"},
			Test: likeScan, Args: args,
		},
	}
}

// ofLimiters returns the mutants of a table's limiters, waiting calls and copies, and of the node.
func ofLimiters() []Mutant {
	const (
		dir         = "services/replay/internal/table/"
		table       = dir + "table.go"
		limiter     = dir + "limiter.go"
		wait        = dir + "wait.go"
		state       = dir + "state.go"
		node        = "services/replay/tables.go"
		inOrder     = "TestWaitingCallsAreServedInTheirOrder"
		ringIsSmall = "TestMinimumSizeIsReachedWhateverTheRingHolds"
		deadlocks   = "TestLimitersThatDeadlockAreRefused"
		badStates   = "TestRestoreRefusesWhatCannotBe"
	)
	return []Mutant{
		{
			Name: "table/overwritten-items-do-not-count",
			Edit: Edit{File: limiter, Func: "limit.overwritten", Original: "l.lost+items", Mutated: "l.lost+0*items"},
			Test: ringIsSmall,
		},
		{
			Name: "table/narrow-buffers-are-accepted",
			Edit: Edit{File: limiter, Func: "Limiter.ratioProblem", Original: "2*l.Buffer < 1+l.Ratio", Mutated: "2*l.Buffer < 0"},
			Test: deadlocks,
		},
		{
			Name: "table/limiters-wait-for-more-samples-than-there-can-be",
			Edit: Edit{File: limiter, Func: "Limiter.ratioProblem", Original: "c.MaxSampled > 0 &&", Mutated: "false &&"},
			Test: deadlocks,
		},
		{
			Name: "table/minimum-size-exceeds-the-table",
			Edit: Edit{File: limiter, Func: "Limiter.problem", Original: "l.MinSize > c.MaxItems", Mutated: "false"},
			Test: deadlocks,
		},
		{
			Name: "table/last-call-is-served-first",
			Edit: Edit{File: wait, Func: "Table.wait", Original: "q.PushBack(w)", Mutated: "q.PushFront(w)"},
			Test: inOrder,
		},
		{
			Name: "table/ended-calls-stay-in-the-queue",
			Edit: Edit{File: wait, Func: "Table.wait", Original: "q.Remove(e)", Mutated: "_ = e"},
			Test: "TestCallThatGivesUpLeavesItsPlace",
		},
		{
			Name: "table/closing-forgets-samplers",
			Edit: Edit{File: table, Func: "Table.Close", Original: "t.samplers.fail(t.closed)", Mutated: "_ = t.samplers.first()"},
			Test: "TestCloseEndsAllCalls",
		},
		{
			Name: "table/expiry-serves-no-waiting-insert",
			Edit: Edit{File: table, Func: "Table.Expire", Original: "t.serve()", Mutated: "_ = t.now()"},
			Test: "TestExpiryMakesRoomInAQueue",
		},
		{
			Name: "table/returned-samples-count",
			Edit: Edit{File: table, Func: "Table.Return", Original: "t.limit.samples -= n", Mutated: "_ = n"},
			Test: "TestReturnedSamplesAreDrawnAgain",
		},
		{
			Name: "table/two-items-are-restored-into-a-slot",
			Edit: Edit{File: state, Func: "Table.restore", Original: "stored.number != 0", Mutated: "false"},
			Test: badStates,
		},
		{
			Name: "table/restored-items-may-have-overwritten-rows",
			Edit: Edit{File: state, Func: "Table.restore", Original: "s.Run.First < t.wheel.oldest", Mutated: "false"},
			Test: badStates,
		},
		{
			Name: "table/nodes-keep-items-of-overwritten-rows",
			Edit: Edit{File: node, Func: "node.table", Original: "t.Expire(oldest)", Mutated: "_ = oldest"},
			Test: "TestItemsLeaveTheirTableWithTheirRows",
		},
		{
			Name: "table/nodes-end-leaves-calls-waiting",
			Edit: Edit{File: node, Func: "tables.close", Original: "t.Close(cause)", Mutated: "_ = t"},
			Test: "TestNodesEndFailsWaitingCalls",
		},
		{
			Name: "table/created-items-have-no-keys",
			Edit: Edit{File: node, Func: "node.CreateItems", Original: "keys[:done]", Mutated: "keys[:0]"},
			Test: "TestItemsLeaveTheirTableWithTheirRows",
		},
	}
}
