package mutants

// ofRay returns the mutants of the engine for Ray that are detected without a cluster.
func ofRay() []Mutant {
	const dir = "internal/engine/ray/"
	return []Mutant{
		{
			Name: "ray/gpus-that-were-not-allocated-are-the-agents", Test: "TestAgentsHaveWhatTheirBundlesHave",
			Edit: Edit{File: dir + "request.go", Func: "resources", Original: "r[machine.GPU] = 0", Mutated: "_ = r"},
		},
		{
			Name: "ray/memory-in-thousandths", Test: "TestBundlesHaveRaysNamesAndUnits",
			Edit: Edit{
				File: dir + "request.go", Func: "bundles",
				Original: `bundle["memory"] = float64(amount)`, Mutated: `bundle["memory"] = float64(amount) / machine.Unit`,
			},
		},
		{
			Name: "ray/interrupted-submissions-are-forgotten", Test: "TestInterruptedSubmissionIsKnown",
			Edit: Edit{File: dir + "jobs.go", Func: "ask", Original: `verb == "submit"`, Mutated: `verb == ""`},
		},
		{
			Name: "ray/words-are-not-quoted", Test: "TestEntrypointIsWhatAShellTakesForTheSameWords",
			Edit: Edit{File: dir + "jobs.go", Func: "Submission.Entrypoint", Original: "words[i] = quote(word)", Mutated: "words[i] = word"},
		},
		{
			Name: "ray/program-replaces-raylink", Test: "TestEntrypointIsWhatAShellTakesForTheSameWords",
			Edit: Edit{File: dir + "jobs.go", Func: "Submission.files", Original: `program == "raylink"`, Mutated: `program == ""`},
		},
	}
}
