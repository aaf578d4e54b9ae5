package mutants

// ofKeepers returns the mutants of processes on other machines.
func ofKeepers() []Mutant {
	const room = "runtime/launch/"
	return []Mutant{
		{
			Name: "launch/resumed-streams-repeat-lines",
			Edit: Edit{File: room + "remote.go", Func: "remoteProcess.process", Original: "res.GetNumber() != number", Mutated: "false"},
			Also: []Edit{{
				File: room + "remote.go", Func: "remoteProcess.first",
				Original: "Received: p.received", Mutated: "Received: p.received - p.received%16",
			}},
			Test: "TestLostStreamsAreResumed",
		},
		{
			Name: "launch/processes-outlive-a-lost-launcher",
			Edit: Edit{File: room + "keeper.go", Func: "keptProcess.detach", Original: "!p.ended", Mutated: "p.ended"},
			Test: "TestProcessEndsWithALinkThatIsCutForGood", Prints: "the process still runs",
		},
		{
			Name: "launch/lost-processes-are-waited-for",
			Edit: Edit{File: room + "remote.go", Func: "remoteProcess.run", Original: "away > p.remote.Patience", Mutated: "away < 0"},
			Test: "TestProcessEndsWithALinkThatIsCutForGood", Prints: "the process counts as running",
		},
		{
			Name: "launch/closed-keepers-kill-at-once",
			Edit: Edit{File: room + "keeper.go", Func: "Keeper.Close", Original: "errs[i] = process.Stop(ctx)", Mutated: "_, _, errs[i] = process, ctx, nil"},
			Test: "TestKeepersProcessesEndWithIt",
		},
	}
}
