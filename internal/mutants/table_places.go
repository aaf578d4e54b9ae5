package mutants

// ofPlaces returns the mutants of the tree's machines, allocations and waiting requests.
func ofPlaces() []Mutant {
	const (
		dir  = "brain/internal/tree/"
		test = "TestAccountsAgreeWithTheRecords"
	)
	many := []string{manyChecks, shrinkBriefly}
	return []Mutant{
		{
			Name: "tree/different-allocations-are-shared",
			Edit: Edit{
				File: dir + "place.go", Func: "shared.allocation",
				Original: "maps.Equal(known.GetResources(), given.GetResources())", Mutated: "true",
			},
			Test: "TestAllocationsAreSharedOnlyIfEqual",
		},
		{
			Name: "tree/copies-of-records-lose-a-field",
			Edit: Edit{File: dir + "txn.go", Func: "copyOf", Original: "Cause: rec.GetCause(),", Mutated: ""},
			Test: "TestCopyOfARecordHasEveryField",
		},
		{
			Name: "tree/nodes-have-allocations-of-their-own",
			Edit: Edit{File: dir + "place.go", Func: "shared.allocation", Original: "len(given.GetGpus()) > 0", Mutated: "true"},
			Test: "TestAllocationsAreSharedOnlyIfEqual",
		},
		{
			Name: "tree/removed-nodes-keep-what-they-have",
			Edit: Edit{File: dir + "txn.go", Func: "Txn.remove", Original: "x.accounts.Release(nid)", Mutated: "_ = nid"},
			Test: test, Args: many,
		},
		{
			Name: "tree/allocations-are-lost-by-a-restart",
			Edit: Edit{File: dir + "place.go", Func: "Tree.loadAllocation", Original: "if given == nil", Mutated: "if given == nil || true"},
			Test: test, Prints: `in the accounts`, Args: many,
		},
		{
			Name: "tree/machines-outlive-their-keepers",
			Edit: Edit{File: dir + "end.go", Func: "Txn.hostGone", Original: "x.unkeep(host.GetId())", Mutated: ""},
			Test: test, Prints: `is in effect|without a keeper`, Args: many,
		},
		{
			Name: "tree/agents-have-no-precedence",
			Edit: Edit{File: dir + "machines.go", Func: "inEffect", Original: "if k.machine.GetAgent()", Mutated: "if k.machine.GetAgent() && false"},
			Test: test, Prints: `another keeper of m\d is in effect`, Args: many,
		},
		{
			Name: "tree/requests-are-impossible-before-hosts-are-back",
			Edit: Edit{File: dir + "stored.go", Func: "Load", Original: "len(t.expected) > 0", Mutated: "false"},
			Test: test, Prints: `impossible requests must wait while hosts are expected back`, Args: many,
		},
		{
			Name: "tree/impossible-requests-wait-forever-after-a-restart",
			Edit: Edit{File: dir + "end.go", Func: "Txn.hostGone", Original: "x.arrived(host.GetId())", Mutated: ""},
			Test: test, Prints: `impossible requests must wait while hosts are expected back`, Args: many,
		},
		{
			Name: "tree/requests-outlive-their-parents",
			Edit: Edit{File: dir + "wait.go", Func: "Txn.endOrphans", Original: "!x.someEnded", Mutated: "true"},
			Test: test, Prints: `a request waits whose parent has ended|the restart of a removed node waits`, Args: many,
		},
		{
			Name: "tree/requests-without-callers-are-placed",
			Edit: Edit{File: dir + "wait.go", Func: "Txn.Serve", Original: "w.caller.Gone()", Mutated: "false"},
			Test: test, Prints: `a request was placed whose caller was gone`, Args: many,
		},
		{
			Name: "tree/waiting-requests-are-not-served",
			Edit: Edit{File: dir + "wait.go", Func: "Txn.Serve", Original: "range x.accounts.Serve()", Mutated: "range x.Begin().accounts.Begin().Serve()"},
			Test: test, Args: many,
		},
		{
			Name: "tree/restarts-move-nodes-whose-machine-is-there",
			Edit: Edit{File: dir + "update.go", Func: "Txn.nextPlace", Original: "there ||", Mutated: "there && false ||"},
			Test: test, Args: many,
		},
		{
			Name: "tree/restarts-wait-for-what-the-node-has",
			Edit: Edit{File: dir + "wait.go", Func: "Txn.UpdateOrWait", Original: "if n.rec.GetAllocation() != nil", Mutated: "if false"},
			Test: "TestRestartDoesNotWaitForWhatTheNodeHas",
		},
		{
			Name: "tree/withdrawn-registrations-wait",
			Edit: Edit{File: dir + "register.go", Func: "Txn.Withdraw", Original: "x.waitingFor(id); w != nil", Mutated: "x.waitingFor(id); w != nil && false"},
			Test: "TestWithdrawnRegistrationWaitsNoLonger",
		},
		{
			Name: "tree/repeated-registrations-ask-for-another-place",
			Edit: Edit{File: dir + "register.go", Func: "Txn.asked", Original: "req.GetPlace()", Mutated: "nil"},
			Test: "TestPlaceBelongsToTheRequest",
		},
		{
			Name: "brain/streams-that-are-over-declare-machines",
			Edit: Edit{File: "brain/attach.go", Func: "Brain.attach", Original: "case <-session.Over(): return session.Err()", Mutated: ""},
			Test: "TestHostThatDiesWhileItAttachesKeepsNoMachine", Prints: `its machine is in the system`,
		},
		{
			Name: "brain/calls-that-end-leave-their-requests",
			Edit: Edit{File: "brain/machines.go", Func: "Brain.stopWaiting", Original: "p.waiting != nil", Mutated: "p.waiting != nil && false"},
			Test: "TestWaitEndsWithItsCall",
		},
	}
}
