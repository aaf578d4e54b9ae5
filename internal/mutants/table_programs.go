package mutants

// ofPrograms returns the mutants of the cache of programs, and of their transfer.
func ofPrograms() []Mutant {
	const cache, transfer, space = "internal/programs/cache.go", "internal/programs/transfer.go", "internal/programs/space.go"
	return []Mutant{
		{
			Name: "programs/wrong-bytes-are-run",
			Edit: Edit{File: transfer, Func: "receive", Original: "case got == id.SHA256:", Mutated: "case true:"},
			Test: "TestWrongBytesAreRefused",
		},
		{
			Name: "programs/damaged-files-are-run",
			Edit: Edit{
				File: cache, Func: "Cache.verify",
				Original: "ok && known == id.SHA256 && info.Mode().Perm() == programMode", Mutated: "ok || known != id.SHA256",
			},
			Test: "TestDamagedProgramIsNeverRun", Prints: `Should be true`,
		},
		{
			Name: "programs/programs-in-use-leave",
			Edit: Edit{File: cache, Func: "Cache.hold", Original: "unix.LOCK_SH|unix.LOCK_NB", Mutated: "unix.LOCK_UN"},
			Test: "TestProgramOfAnotherProcessStays", Prints: `it was fetched`,
		},
		{
			Name: "programs/transfer-ends-with-its-first-caller",
			Edit: Edit{File: cache, Func: "Cache.leave", Original: "f.waiting == 0", Mutated: "true"},
			Test: "TestLastCallerEndsTheTransfer", Prints: `the transfer has ended for a caller that has gone`,
		},
		{
			Name: "programs/sources-transfer-at-once",
			Edit: Edit{
				File: transfer, Func: "Cache.findOrFetch",
				Original: "transferName(id)+lockSuffix", Mutated: "transferName(id)+source.Name+lockSuffix",
			},
			Test: "TestConcurrentGetsShareATransfer/many_sources",
		},
		{
			Name: "programs/transfers-in-progress-have-no-size",
			Edit: Edit{File: space, Func: "parseName", Original: "e.size = size", Mutated: "e.size = 0"},
			Test: "TestTransfersInProgressCount", Prints: `it was fetched`,
		},
		{
			Name: "programs/most-recently-used-leaves",
			Edit: Edit{File: space, Func: "Cache.choose", Original: "a.used.Compare(b.used)", Mutated: "b.used.Compare(a.used)"},
			Test: "TestCacheAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "programs/file-that-is-open-for-writing-is-run",
			Edit: Edit{File: transfer, Func: "awaitWriters", Original: "isOpenForWriting(file)", Mutated: "false"},
			Test: "TestFetchedProgramRunsWhileProcessesAreBeingStarted", Prints: `text file busy`,
			// The moment in which it matters is short.
			Args: []string{failFast, "-test.count=10"},
		},
	}
}
