package mutants

// ofStorageNode returns the mutants of the storage's node.
func ofStorageNode() []Mutant {
	return []Mutant{
		{
			Name: "storage/commit-holds-the-turn",
			Edit: Edit{
				File:     "services/storage/commit.go",
				Func:     "node.change",
				Original: "holds(ctx, &g.hold)",
				Mutated:  "func() bool { <-g.hold.Done(); return true }()",
			},
			Test: "TestCallersShareCommits", Prints: `the commits of 1000 writes`,
		},
		{
			Name: "storage/provisional-writes-are-shown",
			Edit: Edit{
				File:     "services/storage/commit.go",
				Func:     "node.read",
				Original: "g == nil",
				Mutated:  "true",
			},
			Test: "TestProvisionalWritesAreNotShown", Prints: `what was provisional was shown`,
		},
		{
			Name: "storage/failed-check-does-not-wait",
			Edit: Edit{
				File:     "services/storage/commit.go",
				Func:     "node.change",
				Original: "n.latest()",
				Mutated:  "nil",
			},
			Test: "TestFailedChecksWaitForWhatTheySaw",
		},
		{
			Name: "storage/failed-commit-stays-in-memory",
			Edit: Edit{
				File:     "services/storage/commit.go",
				Func:     "node.commitGroup",
				Original: "n.table.Rollback(n.table.CommittedID())",
				Mutated:  "n.table.CommittedID()",
			},
			Test: "TestStorageMatchesModel", Args: []string{shrinkBriefly},
		},
		{
			Name: "storage/call-is-not-synced",
			Edit: Edit{
				File:     "services/storage/commit.go",
				Func:     "node.change",
				Original: "durability > n.durability",
				Mutated:  "false",
			},
			Test: "TestDurabilityOfACall",
		},
		{
			Name: "storage/conditions-are-ignored",
			Edit: Edit{
				File:     "services/storage/ops.go",
				Func:     "view.require",
				Original: "has == want",
				Mutated:  "true",
			},
			Test: "TestStorageMatchesModel", Args: []string{shrinkBriefly},
		},
		{
			Name: "storage/expired-entries-are-read",
			Edit: Edit{
				File:     "services/storage/ops.go",
				Func:     "node.entry",
				Original: "isExpired(&e)",
				Mutated:  "false",
			},
			Test: "TestExpiredEntriesAreMissing",
		},
	}
}

// ofStorageReads returns the mutants of reads of storages that are followed by watches, and of the
// state of damaged ones.
func ofStorageReads() []Mutant {
	return []Mutant{
		{
			Name: "storage/damage-is-not-in-the-nodes-state",
			Edit: Edit{
				File:     "runtime/stop.go",
				Func:     "Host.stopNow",
				Original: "case !n.isUp.Load():",
				Mutated:  "case false:",
			},
			Package: "cmd/raylink",
			Test:    "TestDamagedStorage", Prints: `does not say what is damaged`, Timeout: limit, Alone: true,
		},
		{
			Name: "storage/reads-claim-provisional-ids",
			Edit: Edit{
				File:     "services/storage/ops.go",
				Func:     "node.asOf",
				Original: "max(n.table.CommittedID(), provisional)",
				Mutated:  "n.table.LastID()",
			},
			Test: "TestReadsDoNotClaimIDsThatAreGivenAgain", Prints: `is missed`,
		},
		{
			Name: "storage/reads-disown-what-they-have-seen",
			Edit: Edit{
				File:     "services/storage/ops.go",
				Func:     "node.asOf",
				Original: "max(n.table.CommittedID(), provisional)",
				Mutated:  "n.table.CommittedID()",
			},
			Test: "TestReadThenWatchHasEachChangeOnce",
		},
		{
			Name: "storage/ids-in-memory-begin-again",
			Edit: Edit{
				File:     "services/storage/node.go",
				Func:     "node.startAfter",
				Original: "incarnation > 1",
				Mutated:  "false",
			},
			Test: "TestRestartInMemoryIsNoticed",
		},
		{
			Name: "storage/unchanged-key-is-not-watched",
			Edit: Edit{
				File:     "services/storage/watch.go",
				Func:     "node.Watch",
				Original: "n.isCurrent(req.GetPrefix(), at)",
				Mutated:  "false",
			},
			Test: "TestWatchOfAnOldKey",
		},
		{
			Name: "storage/any-key-counts-as-unchanged",
			Edit: Edit{
				File:     "services/storage/watch.go",
				Func:     "node.isCurrent",
				Original: "e.ID == id",
				Mutated:  "e.ID >= id",
			},
			Test: "TestWatchOfAnOldKey",
		},
		{
			Name: "storage/response-claims-later-changes",
			Edit: Edit{
				File:     "services/storage/watch.go",
				Func:     "inResponses",
				Original: "res.Id = c.GetId()",
				Mutated:  "res.Id = changes[len(changes)-1].ID",
			},
			Test: "TestClient", Prints: `a watcher that resumes from here misses nothing`,
		},
	}
}
