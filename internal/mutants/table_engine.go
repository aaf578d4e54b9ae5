package mutants

// ofEngine returns the mutants of the runs of programs over machines of an engine.
func ofEngine() []Mutant {
	return []Mutant{
		{
			Name: "engine/agents-outlive-the-head",
			Edit: Edit{File: "internal/engine/attach.go", Func: "Attach", Original: "lost()\n return", Mutated: "return"},
			Test: "TestAttach",
		},
		{
			Name: "engine/stop-asks-twice",
			Edit: Edit{File: "internal/engine/attach.go", Func: "Attach", Original: "&& !stopped", Mutated: ""},
			Test: "TestAttach",
		},
		{
			Name: "engine/records-anywhere",
			Edit: Edit{
				File: "internal/engine/record.go", Func: "Records.Find",
				Original: `strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") != ""`, Mutated: `false && strings.Contains(id, "/")`,
			},
			Test: "TestRecordsOfEndedRunsAreBounded",
		},
		{
			Name: "engine/running-records-removed",
			Edit: Edit{File: "internal/engine/record.go", Func: "Records.Create", Original: "if old.State == Running { continue }", Mutated: ""},
			Test: "TestRecordsOfEndedRunsAreBounded",
		},
		{
			Name: "engine/misspelt-settings-are-resources",
			Edit: Edit{
				File: "internal/engine/group.go", Func: "set",
				Original: "spelling.Distance(key, known) <= 1", Mutated: "spelling.Distance(key, known) < 0",
			},
			Test: "TestParseGroupRefuses", Prints: `An error is expected`,
		},
		{
			Name: "engine/last-output-lost",
			Edit: Edit{File: "internal/engine/record.go", Func: "Follow", Original: "if from != nil { if", Mutated: "if from != nil && !over { if"},
			Test: "TestFollowCopiesWhatWasWrittenBeforeTheEnd",
		},
		{
			Name: "engine/sweeps-make-removed-directories",
			Edit: Edit{
				File: "runtime/rundir/host.go", Func: "SweepHosts",
				Original: "if errors.Is(err, fs.ErrNotExist) {", Mutated: "if err != nil && false {",
			},
			Test: "TestSweepHostsMakesNoDirectory",
		},
	}
}
