package mutants

// ofStore returns the mutants of the parameter store.
func ofStore() []Mutant {
	const directory = "services/ps/store/"
	rows := []struct{ name, file, function, original, mutated, test string }{
		{
			"lock-is-released-by-closing-it-only", "store.go", "Store.unlock",
			"mapfile.Unlock(lock, 0)", "nil", "TestClosedStoreIsOpenedWhileAProcessIsBeingStarted",
		},
		{
			"held-version-is-recycled", "file.go", "file.claim",
			"[]uint64{holdLock, fillLock}", "[]uint64{}", "TestStallingReadersNeverSeeARecycledFile",
		},
		{
			"file-is-reused-while-it-is-filled", "file.go", "file.claim",
			"[]uint64{holdLock, fillLock}", "[]uint64{holdLock}", "TestPusherKilledWhileItFillsADraft",
		},
		{
			"file-is-reused-under-a-source", "file.go", "file.claim",
			"f.sources > 0", "false", "TestSourceFollowsDraft",
		},
		{
			"next-officer-reuses-a-file-under-a-source", "store.go", "file.closeUnused",
			"return mapfile.LockShared(f.handle, holdLock)", "return nil", "TestSourceOutlivesItsOfficer",
		},
		{
			"reader-does-not-notice-a-recycled-file", "hold.go", "mapped.load",
			"word(m.all, stateAt).Load() != id", "false", "TestReaderThatLoadedAnOldIDRetries",
		},
		{
			"forgotten-parameters-are-held", "hold.go", "mapped.parameters",
			"runtime.AddCleanup(p, (*mapped).forget, m)", "runtime.Cleanup{}", "TestForgottenParametersAreReleasedAndLoggedOnce",
		},
		{
			"discarded-draft-is-filled", "fill.go", "fillFile",
			"version.GetContent() != content", "version == nil", "TestOnlyLentDraftsAreFilled",
		},
		{
			"reclaimed-draft-is-filled", "fill.go", "fillFile",
			"binary.LittleEndian.Uint64(b[lentAt:]) != 1", "binary.LittleEndian.Uint64(b[lentAt:]) > 1", "TestOnlyLentDraftsAreFilled",
		},
		{
			"draft-is-reclaimed-with-any-checksum", "draft.go", "Draft.reclaim",
			"actual != sum", "false", "TestOnlyLentDraftsAreFilled",
		},
		{
			"damaged-chunk-is-written", "draft.go", "Draft.writeChunk",
			"actual != sum", "false", "TestDamagedChunksAreRefused",
		},
		{
			"deleted-version-comes-back", "takeover.go", "tag.load",
			"deleted = last", "deleted = 0", "TestTakeoverAfterEachStep",
		},
		{
			"older-version-replaces-a-lost-one", "takeover.go", "tag.load",
			"case id < newest:", "case false:", "TestTakeoverAfterEachStep",
		},
		{
			"lost-version-is-not-restored", "store.go", "tag.late",
			"id <= t.last() && id != word(t.index, lostAt).Load()", "id <= t.last()", "TestTakeoverAfterEachStep",
		},
		{
			"damaged-version-is-taken-over", "file.go", "file.verify",
			"sum != f.table[i]", "false", "FuzzTakeover",
		},
		{
			"versions-of-another-boot-are-taken-over", "takeover.go", "Store.load",
			"err = s.dropTags()", "err = nil", "TestFilesOfAnotherBootAreDropped",
		},
		{
			"total-size-is-not-bounded", "room.go", "Store.tryAllocate",
			"limit > 0 && s.total-before+after > limit && after > before", "limit > s.options.MaxBytes*2", "TestTotalSizeIsBounded",
		},
		{
			"old-versions-keep-the-room", "room.go", "Store.makeRoom",
			"freed, err = s.retireOldest()", "freed = false", "TestTotalSizeIsBounded",
		},
		{
			"newest-version-makes-room", "room.go", "Store.retireOldest",
			"t.old(0)", "t.versions", "TestTotalSizeIsBounded",
		},
		{
			"file-of-another-tag-is-read", "version.go", "checkDescription",
			"string(tag) != name", "false", "TestFileOfAnotherTagIsNotRead",
		},
		{
			"files-are-not-recycled", "room.go", "Store.recycle",
			"s.options.Held - 1", "s.options.Held", "TestFilesAndMappingsAreReused",
		},
		{
			"memory-of-removed-files-is-kept", "file.go", "file.destroy",
			"f.handle.Truncate(page)", "nil", "TestMemoryOfRemovedFilesIsFreed",
		},
	}
	mutants := make([]Mutant, 0, len(rows))
	for _, m := range rows {
		mutants = append(mutants, Mutant{
			Name: "ps/" + m.name,
			Edit: Edit{File: directory + m.file, Func: m.function, Original: m.original, Mutated: m.mutated},
			Test: m.test,
		})
	}
	return mutants
}
