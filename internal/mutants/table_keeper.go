package mutants

// ofKeepers returns the mutants of processes on other machines, and of nodes in agents' processes.
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
		{
			Name: "launch/nodes-enter-processes-of-other-programs",
			Edit: Edit{File: "runtime/agentprocess.go", Original: "what.GetBuild() != build", Mutated: `build == ""`},
			Test: "TestOtherProgramsTakeNoNodesIntoTheirProcess", Prints: "FailedPrecondition|failed_precondition|panic",
		},
		{
			Name: "launch/nodes-with-gpus-enter-agents-processes",
			Edit: Edit{File: "runtime/place.go", Original: "place.GetResources()[machine.GPU] > 0", Mutated: "false"},
			Test: "TestDefaultsOfATypeAreForProcessesOfTheirOwn", Prints: "An error is expected but got nil",
		},
	}
}
