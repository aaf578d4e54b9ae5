package mutants

// ofWaits returns the mutants of calls that wait for a limiter, and of those that change tables.
func ofWaits() []Mutant {
	return []Mutant{
		{
			Name: "replay/waiting-items-lose-their-place",
			Edit: Edit{File: "services/replay/itemqueue.go", Func: "itemQueue.send", Original: "math.MaxUint32", Mutated: "math.MaxUint32 >> 22"},
			Test: "TestWaitingItemsKeepTheirPlace",
		},
		{
			Name: "replay/waiting-samplers-lose-their-place",
			Edit: Edit{File: "services/replay/draw.go", Func: "Sampler.request", Original: "math.MaxUint32, newCall()", Mutated: "1000, newCall()"},
			Test: "TestWaitingSamplersKeepTheirPlace",
		},
		{
			Name: "replay/errors-say-what-was-waited-for-at-first",
			Edit: Edit{File: "services/replay/call.go", Func: "Client.waitingFor", Original: "call != 0", Mutated: "call == 0"},
			Test: "TestErrorsSayWhatIsWaitedForNow",
		},
		{
			Name: "replay/deletions-by-keys-of-another-ring",
			Edit: Edit{File: "services/replay/tables.go", Func: "node.keysOf", Original: "!n.isRing(req.GetRingId())", Mutated: "false"},
			Test: "TestDeletedItemsAreGone",
		},
	}
}
