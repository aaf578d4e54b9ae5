package mutants

// ofKilledStorages returns the mutants of the storage that take several processes.
func ofKilledStorages() []Mutant {
	const (
		directory = "services/storage/"
		kills     = "TestAcknowledgedWritesSurviveKillsOfTheStorage"
		damage    = "TestDamagedStoreIsNotOpened"
	)
	rows := []struct{ name, file, function, original, mutated, test, prints string }{
		{
			"write-is-acknowledged-before-the-commit", "commit.go", "node.change",
			"holds(ctx, &g.hold)", "true", kills + "/sync", `an acknowledged write is lost|after id [0-9]+ was seen`,
		},
		{
			"group-is-committed-in-parts", "commit.go", "node.commitGroup",
			"err := n.log.Commit(e.records, g.removed)",
			"var err error; for i := range e.records { if err == nil { err = n.log.Commit(e.records[i:i+1], nil) } }",
			kills + "/sync", `a batch is torn`,
		},
		{
			"storage-begins-anew", "storage.go", "Type",
			"folder, self.NID())", "folder, self.NID(), string(rune('a'+self.Ref().Incarnation())))", kills + "/async", `it is not known, or not any more`,
		},
		{
			"watch-begins-before-the-id", "watch.go", "node.Watch",
			"at = req.GetSince()", "at = req.GetSince() - min(req.GetSince(), 1)", kills + "/async", `twice|was sent id|says that all`,
		},
		{
			"watch-resumes-from-the-beginning", "watchclient.go", "watch.once",
			"w.req.Since = &upTo", "_ = upTo", kills + "/async", `twice|was sent id`,
		},
		{
			"ended-watch-leaves-a-goroutine", "watch.go", "node.Watch",
			"stopping := runtime.NodeFrom(ctx).Stopping()", "stopping := runtime.NodeFrom(ctx).Stopping(); go func() { <-stopping }()",
			"TestStoppedStorageGoesOn", `the storage has more than before the load`,
		},
		{
			"storage-starts-without-its-last-writes", "internal/writelog/writelog.go", "Log.open",
			"found.last < m.required(l.boot)", "false", damage, `and the storage starts`,
		},
	}
	mutants := make([]Mutant, len(rows))
	for i, r := range rows {
		mutants[i] = Mutant{
			Name:    "storage/" + r.name,
			Edit:    Edit{File: directory + r.file, Func: r.function, Original: r.original, Mutated: r.mutated},
			Package: "internal/storagetest", Test: r.test, Prints: r.prints, Args: []string{failFast},
		}
	}
	return mutants
}
