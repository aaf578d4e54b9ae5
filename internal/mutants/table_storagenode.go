package mutants

// ofStorageNode returns the mutants of the storage's node.
func ofStorageNode() []Mutant {
	return []Mutant{
		{
			Name: "storage/commit-holds-the-turn",
			Edit: Edit{
				File:     "services/storage/commit.go",
				Func:     "node.change",
				Original: "runtime.NodeFrom(ctx).HoldAnswer(ctx, g.hold)",
				Mutated:  "<-g.hold.Done()",
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
			Test: "TestStorageMatchesModel", Args: []string{noFailFile, shrinkBriefly},
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
			Test: "TestStorageMatchesModel", Args: []string{noFailFile, shrinkBriefly},
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
