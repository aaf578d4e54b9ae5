package mutants

// ofPlacement returns the mutants of the accounts of machines, and of the requests that wait.
func ofPlacement() []Mutant {
	const (
		accounts = "brain/internal/placement/accounts.go"
		decide   = "brain/internal/placement/decide.go"
		queue    = "brain/internal/placement/queue.go"
	)
	return []Mutant{
		{
			Name: "placement/machines-get-more-than-they-have",
			Edit: Edit{
				File: "brain/internal/placement/demand.go", Func: "demand.room", Original: "b.free()", Mutated: "b.total",
			},
			Test: "TestPlacementsAgreeWithTheModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "placement/nodes-of-a-gang-share-a-gpu",
			Edit: Edit{File: decide, Func: "candidate.place", Original: "c.gpus = c.gpus[gpus:]", Mutated: "_ = c.gpus[gpus:]"},
			Test: "TestPlacementsAgreeWithTheModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "placement/dropped-versions-have-effects",
			Edit: Edit{File: accounts, Func: "Accounts.own", Original: "if a.owned {", Mutated: "if a.owned || a.base != nil {"},
			Test: "TestPlacementsAgreeWithTheModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "placement/later-requests-pass-those-that-wait",
			Edit: Edit{File: decide, Func: "Accounts.decide", Original: "here == 0 || claims.reserve(acct)", Mutated: "here == 0"},
			Test: "TestSmallRequestsWaitBehindALargeOne",
		},
		{
			Name: "placement/reservations-are-given-up",
			Edit: Edit{
				File:     queue,
				Func:     "Accounts.serve",
				Original: "slices.Concat(w.lacking, a.shortage(w.demand, before.against(w.demand)).names())",
				Mutated:  "a.shortage(w.demand, before.against(w.demand)).names()",
			},
			Test: "TestReservationsAreKept", Prints: `the GPU was given to a later request`,
		},
		{
			Name: "placement/impossible-requests-wait",
			Edit: Edit{File: queue, Func: "Accounts.serve", Original: "c.count >= w.demand.Count", Mutated: "c.count > 0"},
			Test: "TestLargerRequestOfTheSameClassBecomesImpossible",
		},
	}
}
