package mutants

// ofSlurm returns the mutants of the engine of Slurm that are found without a cluster.
func ofSlurm() []Mutant {
	const dir = "internal/engine/slurm/"
	rows := []struct{ name, file, function, original, mutated, test, prints string }{
		{
			"any-head-is-believed", dir + "task.go", "place.dial",
			"fingerprint(state.PeerCertificates[0].Raw) != p.Fingerprint", `p.Fingerprint == ""`, "TestTasksFindTheirHead", `An error is expected`,
		},
		{
			"any-task-is-admitted", dir + "meeting.go", "meeting.admit",
			"[]byte(m.place.Secret)", "[]byte(hello.Secret)", "TestTasksFindTheirHead", `a stranger is refused`,
		},
		{
			"meetings-of-others-are-used", dir + "task.go", "readPlace",
			"info.Mode().Perm()&0o077 != 0", "info.Mode().Perm()&0 != 0", "TestForeignMeetingsAreRefused", `An error is expected`,
		},
		{
			"options-have-further-lines", dir + "script.go", "optionQuote",
			"strings.ContainsFunc(option, unicode.IsControl)", "strings.ContainsFunc(option[:0], unicode.IsControl)", "TestScript", `An error is expected`,
		},
		{
			"quotes-end-words", dir + "script.go", "shellQuote",
			"strings.ReplaceAll(word, \"'\", `'\\''`)", "word", "TestScript", `Not equal`,
		},
		{
			"batch-scripts-are-steps", dir + "env.go", "Env.Find",
			`e.get("SLURM_STEP_ID") != "" && e.get("SLURM_SRUN_COMM_PORT") != ""`, "true", "TestPlaces", `a batch script has a rank`,
		},
		{
			"gpus-of-other-jobs-are-used", dir + "env.go", "Env.Resources",
			"r[machine.GPU] = 0", "_ = machine.GPU", "TestResourcesOfTasks", `Not equal`,
		},
		{
			"interrupted-submissions-are-forgotten", dir + "job.go", "Submission.Submit",
			`context.WithoutCancel(ctx), "sbatch"`, `ctx, "sbatch"`, "TestInterruptedSubmissionIsKnown", `context canceled`,
		},
		{
			"jobs-wait-for-ever", dir + "job.go", "Status.hopeless",
			`strings.Contains(s.Reason, "PerJob")`, `strings.Contains(s.Reason, "")`, "TestJobsThatCanOnlyWait", `AssocMaxJobsLimit`,
		},
		{
			"homes-of-the-living-are-removed", "internal/engine/home.go", "lockHome",
			"unix.LOCK_EX|unix.LOCK_NB", "unix.LOCK_SH|unix.LOCK_NB", "TestHomesOfKilledProcessesAreRemoved", `its process lives`,
		},
	}
	mutants := make([]Mutant, len(rows))
	for i, r := range rows {
		mutants[i] = Mutant{
			Name: "slurm/" + r.name, Edit: Edit{File: r.file, Func: r.function, Original: r.original, Mutated: r.mutated},
			Test: r.test, Prints: r.prints,
		}
	}
	return mutants
}
