package mutants

// ofInspection returns the mutants of what is seen of a replay from outside.
func ofInspection() []Mutant {
	const (
		inspect = "services/replay/inspect.go"
		state   = "services/replay/internal/table/state.go"
		rates   = "services/replay/internal/table/inspect.go"
	)
	return []Mutant{
		{
			Name: "replay/items-with-overwritten-rows-are-listed",
			Edit: Edit{File: inspect, Func: "rowsOfItems.read", Original: "len(lost) > 0", Mutated: "len(lost) < 0"},
			Test: "TestItemsWithOverwrittenRowsAreNotListed",
		},
		{
			Name: "replay/items-of-the-ring-before-are-found",
			Edit: Edit{File: inspect, Func: "node.states", Original: "n.isRing(req.GetRingId())", Mutated: "true"},
			Test: "TestUnknownItemsTablesAndColumnsAreTypedErrors",
		},
		{
			Name: "replay/pages-of-items-have-any-size",
			Edit: Edit{File: inspect, Func: "node.states", Original: "most > maxSampledItems", Mutated: "false"},
			Test: "TestUnknownItemsTablesAndColumnsAreTypedErrors",
		},
		{
			Name: "replay/rows-of-a-page-have-any-size",
			Edit: Edit{File: inspect, Func: "rowsOfItems.read", Original: "r.left -= rows * r.rowSize", Mutated: "_ = r.left"},
			Test: "TestPagesOfItemsHaveEachItemOnce",
		},
		{
			Name: "replay/closed-clients-inspect",
			Edit: Edit{File: inspect, Func: "Client.Inspect", Original: "err := c.opened(); err != nil", Mutated: "err := error(nil); err != nil"},
			Test: "TestUnknownItemsTablesAndColumnsAreTypedErrors",
		},
		{
			Name: "replay/ended-rings-are-inspected",
			Edit: Edit{File: inspect, Func: "node.Inspect", Original: "_, err := n.ring.Oldest(ctx)", Mutated: "err := error(nil)"},
			Test: "TestAllCallsAfterTheNodeEnded",
		},
		{
			Name: "ring/dead-holders-are-listed",
			Edit: Edit{File: "services/replay/ring/area.go", Func: "Ring.Holders", Original: "r.holdersOf(r.reclaimDead())", Mutated: "r.holders()"},
			Test: "TestHoldersAreThoseThatLive",
		},
		{
			Name: "table/rates-count-old-seconds",
			Edit: Edit{File: rates, Func: "meter.rates", Original: "slot.second >= first", Mutated: "slot.second >= 0"},
			Test: "TestRatesAreThoseOfTheLastSeconds",
		},
		{
			Name: "table/lists-end-at-many-free-slots",
			Edit: Edit{File: state, Func: "Table.someItems", Original: "n < len(states) && from < t.slots.high", Mutated: "false"},
			Test: "TestItemsAreListedThoughManySlotsAreFree",
		},
	}
}
