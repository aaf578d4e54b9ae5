package mutants

import "time"

// ofStorageLog returns the mutants of the storage's log of writes.
func ofStorageLog() []Mutant {
	const room = "services/storage/internal/writelog/"
	// In a bubble of synctest, rapid cannot shrink a failure.
	notShrunk := []string{noFailFile, "-rapid.shrinktime=0s"}
	return []Mutant{
		{
			Name: "writelog/commits-stay-in-memory",
			Edit: Edit{File: room + "session.go", Func: "session.apply", Original: "pebble.Sync", Mutated: "pebble.NoSync"},
			Test: "TestAcknowledgedWritesSurviveKill", Prints: "an acknowledged write is lost|had been stored", Timeout: 3 * time.Minute,
		},
		{
			Name: "writelog/nothing-is-synced-by-the-timer",
			Edit: Edit{File: room + "writelog.go", Func: "Log.syncNow", Original: "s.disk.syncDirty()", Mutated: "_ = s"},
			Test: "TestLossOfPower", Prints: "durable writes are lost|had been stored", Args: notShrunk,
		},
		{
			Name: "writelog/syncs-are-too-rare",
			Edit: Edit{
				File: room + "writelog.go", Func: "Log.syncInBackground",
				Original: "timer.Reset(syncInterval)", Mutated: "timer.Reset(10 * syncInterval)",
			},
			Test: "TestLossOfPower", Prints: "durable writes are lost|had been stored", Args: notShrunk,
		},
		{
			Name: "writelog/sync-mode-leaves-it-to-the-timer",
			Edit: Edit{File: room + "session.go", Func: "Log.newSession", Original: "lazy: !l.opts.Sync", Mutated: "lazy: true"},
			Test: "TestLossOfPower", Prints: "durable writes are lost|had been stored", Args: notShrunk,
		},
		{
			Name: "writelog/closed-log-files-are-not-synced",
			Edit: Edit{
				File: room + "disk.go", Func: "diskFile.Close",
				Original: "f.disk.change(f.File.SyncData)", Mutated: "_ = f",
			},
			Test: "TestLossOfPower", Args: notShrunk,
		},
		{
			Name: "writelog/watermark-is-ignored",
			Edit: Edit{
				File: room + "writelog.go", Func: "Log.open",
				Original: "found.last < m.required(l.boot)", Mutated: "false",
			},
			Test: "TestDamagedDataAreDetected",
		},
		{
			Name: "writelog/kept-files-are-removed-at-once",
			Edit: Edit{File: room + "disk.go", Func: "disk.keeps", Original: "!d.keep || !data", Mutated: "true || !data"},
			Test: "TestDamagedDataAreDetected", Prints: "a failed opening removed a file",
		},
		{
			Name: "writelog/failed-group-stays",
			Edit: Edit{File: room + "writelog.go", Func: "Log.reopen", Original: "len(extra) > 0", Mutated: "false"},
			Test: "TestGroupThatFailedAfterItWasWrittenIsRemoved",
		},
		{
			Name: "writelog/failures-do-not-stop-the-disk",
			Edit: Edit{File: room + "disk.go", Func: "disk.change", Original: "d.onFail(err)", Mutated: "_ = err"},
			Test: "TestEveryFailureOfTheDiskIsRepaired",
		},
		{
			Name: "writelog/removals-go-with-their-own-group",
			Edit: Edit{
				File: room + "writelog.go", Func: "Log.Commit",
				Original: "if len(records) > 0 {", Mutated: "l.removable = append(l.removable, remove...); remove = nil; if len(records) > 0 {",
			},
			Test: "TestReopenedLogHasWhatWasCommitted",
		},
	}
}
