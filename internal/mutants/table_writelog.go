package mutants

import "time"

// powerTimeout bounds a test that loses power at random, a thousand times.
const powerTimeout = 4 * time.Minute

// ofStorageLog returns the mutants of the storage's log of writes.
func ofStorageLog() []Mutant {
	const room = "services/storage/internal/writelog/"
	// In a bubble of synctest, rapid cannot shrink a failure. Few scripts lose just the last id.
	notShrunk := []string{"-rapid.shrinktime=0s", "-rapid.checks=1000"}
	return []Mutant{
		{
			Name: "writelog/commits-stay-in-memory",
			Edit: Edit{File: room + "session.go", Func: "session.apply", Original: "pebble.Sync", Mutated: "pebble.NoSync"},
			Test: "TestAcknowledgedWritesSurviveKill", Prints: "an acknowledged write is lost|had been stored", Timeout: 3 * time.Minute,
		},
		{
			Name: "writelog/nothing-is-synced-by-the-timer",
			Edit: Edit{File: room + "writelog.go", Func: "Log.syncNow", Original: "s.disk.syncDirty()", Mutated: "_ = s"},
			Test: "TestLossOfPower", Args: notShrunk, Timeout: powerTimeout,
			Prints: "durable writes are lost|had been stored|closing the log loses the ids|looks like damage",
		},
		{
			Name: "writelog/syncs-are-too-rare",
			Edit: Edit{
				File: room + "writelog.go", Func: "Log.syncInBackground",
				Original: "timer.Reset(syncInterval)", Mutated: "timer.Reset(10 * syncInterval)",
			},
			Test: "TestLossOfPower", Prints: "durable writes are lost|had been stored", Args: notShrunk, Timeout: powerTimeout,
		},
		{
			Name: "writelog/sync-mode-leaves-it-to-the-timer",
			Edit: Edit{File: room + "session.go", Func: "Log.newSession", Original: "lazy: !l.opts.Sync", Mutated: "lazy: true"},
			Test: "TestLossOfPower", Prints: "durable writes are lost|had been stored", Args: notShrunk, Timeout: powerTimeout,
		},
		{
			Name: "writelog/closed-log-files-are-not-synced",
			Edit: Edit{
				File: room + "disk.go", Func: "diskFile.Close",
				Original: "f.disk.change(f.File.SyncData)", Mutated: "_ = f",
			},
			Test: "TestLossOfPower", Args: notShrunk, Timeout: powerTimeout,
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
			Edit: Edit{File: room + "session.go", Func: "session.drop", Original: "len(c.extra) == 0", Mutated: "true"},
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

// ofStorageIDs returns the mutants of the ids that a storage gives.
func ofStorageIDs() []Mutant {
	const room = "services/storage/internal/writelog/"
	notShrunk := []string{"-rapid.shrinktime=0s"} // as above
	return []Mutant{
		{
			Name: "writelog/failed-group-returns",
			Edit: Edit{
				File: room + "watermark.go", Func: "marks.acknowledged",
				Original: "m.sameBoot(boot) && m.certain", Mutated: "false",
			},
			Test: "TestFailedGroupIsDroppedIfTheProcessEnds", Prints: "a write that failed is there",
		},
		{
			Name: "writelog/ids-are-not-reserved-before-use",
			Edit: Edit{
				File: room + "writelog.go", Func: "Log.reserve",
				Original: "l.opts.Sync || last <= l.reserved.Load()", Mutated: "true",
			},
			Test: "TestLossOfPower", Prints: "ids would be given again|would resume", Args: notShrunk, Timeout: powerTimeout,
		},
		{
			Name: "writelog/lost-ids-are-not-skipped",
			Edit: Edit{
				File: room + "watermark.go", Func: "marks.lost",
				Original: "m.sameBoot(boot) ||", Mutated: "true ||",
			},
			Test: "TestLossOfPower", Prints: "ids would be given again|would resume", Args: notShrunk, Timeout: powerTimeout,
		},
		{
			Name: "writelog/last-lost-id-is-known-again",
			Edit: Edit{File: room + "watermark.go", Func: "marks.lost", Original: "m.reserved + 1", Mutated: "m.reserved"},
			Test: "TestLossOfPower", Prints: "would resume", Args: notShrunk, Timeout: powerTimeout,
		},
		{
			Name: "writelog/skipped-ids-are-forgotten",
			Edit: Edit{
				File: room + "writelog.go", Func: "Log.start",
				Original: "m.floor, m.reserved = l.floor,", Mutated: "m.floor, m.reserved = 0,",
			},
			Test: "TestIdsContinueAfterAKill",
		},
		{
			Name: "writelog/closed-log-keeps-its-reservation",
			Edit: Edit{File: room + "writelog.go", Func: "Log.finish", Original: "m.reserved = l.Last()", Mutated: "_ = m"},
			Test: "TestLossOfPower", Prints: "closing the log loses the ids", Args: notShrunk, Timeout: powerTimeout,
		},
		{
			Name: "writelog/table-does-not-skip",
			Edit: Edit{
				File: "services/storage/storage.go", Func: "node.open",
				Original: "n.table.Skip(log.Last())", Mutated: "_ = log.Last()",
			},
			Test: "TestIdsOfLostWritesAreNotGivenAgain",
		},
		{
			Name: "writelog/history-goes-on-over-skipped-ids",
			Edit: Edit{
				File: "services/storage/internal/table/table.go", Func: "Table.Skip",
				Original: "t.history.length > 0", Mutated: "false",
			},
			Test: "TestSkippedIdsEndTheHistory",
		},
	}
}
