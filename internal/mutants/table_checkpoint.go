package mutants

import "time"

// ofCheckpointFiles returns the mutants of the files of checkpoints.
func ofCheckpointFiles() []Mutant { //nolint:funlen // a table
	const (
		read     = "services/replay/internal/checkpoint/read.go"
		manifest = "services/replay/internal/checkpoint/manifest.go"
		items    = "services/replay/internal/checkpoint/items.go"
	)
	return []Mutant{
		{
			Name: "checkpoint/content-checksum-is-not-compared",
			Edit: Edit{File: read, Func: "chunks.next", Original: "got != sum", Mutated: "false"},
			Test: "TestDamagedChunksAreRefused",
		},
		{
			Name: "checkpoint/header-checksum-is-not-compared",
			Edit: Edit{File: read, Func: "chunks.next", Original: "got != want", Mutated: "false"},
			Test: "TestDamagedChunksAreRefused",
		},
		{
			Name: "checkpoint/file-checksum-is-not-compared",
			Edit: Edit{File: read, Func: "Reader.read", Original: "c.sum != described.GetCrc32C()", Mutated: "false"},
			Test: "TestForgedManifestsAreRefused", Prints: `another sum`,
		},
		{
			Name: "checkpoint/manifest-checksum-is-not-compared",
			Edit: Edit{File: manifest, Func: "parseManifest", Original: "want != got", Mutated: "false"},
			Test: "TestDamagedCheckpointsAreRefused", Package: "services/replay",
		},
		{
			Name: "checkpoint/other-versions-are-read",
			Edit: Edit{File: manifest, Func: "parseManifest", Original: "m.GetVersion() != Version", Mutated: "false"},
			Test: "TestForgedManifestsAreRefused", Prints: `another version`,
		},
		{
			Name: "checkpoint/rows-may-be-in-any-file",
			Edit: Edit{File: manifest, Func: "checkManifest", Original: "name != rowsName", Mutated: "false"},
			Test: "TestForgedManifestsAreRefused", Prints: `another file`,
		},
		{
			Name: "checkpoint/tables-may-be-in-any-file",
			Edit: Edit{File: manifest, Func: "checkManifest", Original: "name != tableName(i)", Mutated: "false"},
			Test: "TestForgedManifestsAreRefused", Prints: `another table`,
		},
		{
			Name: "checkpoint/rows-need-not-fit",
			Edit: Edit{File: manifest, Func: "checkManifest", Original: "m.GetRows() > min(m.GetNext(), m.GetCapacity())", Mutated: "false"},
			Test: "TestForgedManifestsAreRefused", Prints: `more (rows than fit|than numbers)`,
		},
		{
			Name: "checkpoint/tables-may-have-one-name",
			Edit: Edit{
				File: manifest, Func: "checkManifest",
				Original: "other.GetConfig().GetName() == t.GetConfig().GetName()",
				Mutated:  "other.GetConfig().GetName() == t.GetConfig().GetName() && false",
			},
			Test: "TestForgedManifestsAreRefused", Prints: `two such table`,
		},
		{
			Name: "checkpoint/more-files-are-accepted",
			Edit: Edit{File: read, Func: "Reader.checkFiles", Original: "expected[e.Name()] == nil", Mutated: "false"},
			Test: "TestDamagedCheckpointsAreRefused", Package: "services/replay",
		},
		{
			Name: "checkpoint/rows-are-not-counted",
			Edit: Edit{File: read, Func: "chunks.rows", Original: "rows != manifest.GetRows()", Mutated: "false"},
			Test: "FuzzRows",
		},
		{
			Name: "checkpoint/items-are-not-counted",
			Edit: Edit{File: read, Func: "Reader.Items", Original: "items != t.GetItems()", Mutated: "false"},
			Test: "TestForgedManifestsAreRefused", Prints: `fewer items`,
		},
		{
			Name: "checkpoint/chunks-may-be-in-any-order",
			Edit: Edit{File: read, Func: "chunks.rows", Original: "sequences[0] < next", Mutated: "false"},
			Test: "TestRowsThatCannotBeAreRefused",
		},
		{
			Name: "checkpoint/rows-may-be-behind-the-last",
			Edit: Edit{File: read, Func: "chunks.rows", Original: "sequences[len(sequences)-1] >= manifest.GetNext()", Mutated: "false"},
			Test: "TestRowsThatCannotBeAreRefused", Prints: `behind the last number`,
		},
		{
			Name: "checkpoint/runs-may-be-in-any-order",
			Edit: Edit{File: read, Func: "parseRows", Original: "first < end", Mutated: "first < end && false"},
			Test: "TestRowsThatCannotBeAreRefused", Prints: `runs in another order`,
		},
		{
			Name: "checkpoint/runs-may-be-empty",
			Edit: Edit{File: read, Func: "parseRows", Original: "length == 0", Mutated: "false"},
			Test: "TestRowsThatCannotBeAreRefused", Prints: `an empty run`,
		},
		{
			Name: "checkpoint/chunks-of-items-have-any-size",
			Edit: Edit{File: read, Func: "chunks.next", Original: "length > most", Mutated: "false"},
			Test: "TestDamagedFilesTakeLittleMemory",
		},
		{
			Name: "checkpoint/free-slots-are-items",
			Edit: Edit{File: items, Func: "parseItems", Original: "s.Number == 0", Mutated: "false"},
			Test: "TestItemsThatCannotBeAreRefused",
		},
		{
			Name: "checkpoint/bytes-may-follow-the-items",
			Edit: Edit{File: items, Func: "parseItems", Original: "len(p.b) > 0", Mutated: "false"},
			Test: "TestItemsThatCannotBeAreRefused", Prints: `more bytes`,
		},
		{
			Name: "checkpoint/items-of-any-size-in-one-chunk",
			Edit: Edit{File: items, Func: "appendItems", Original: "len(b)-begin < itemBytes", Mutated: "true"},
			Test: "TestItemsOfManyRuns",
		},
	}
}

// ofCheckpointing returns the mutants of writing checkpoints.
func ofCheckpointing() []Mutant {
	const (
		write   = "services/replay/internal/checkpoint/write.go"
		node    = "services/replay/checkpointing.go"
		replay  = "services/replay"
		minutes = 4 * time.Minute
	)
	return []Mutant{
		{
			Name: "checkpoint/target-exists-before-it-is-complete",
			Edit: Edit{
				File: write, Func: "create",
				Original: `part: filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".part")`, Mutated: "part: target",
			},
			Test: "TestKilledCheckpoints", Package: replay, Timeout: minutes,
		},
		{
			Name: "checkpoint/what-the-killed-have-left-stays",
			Edit: Edit{File: write, Func: "Writer.makePart", Original: "err = os.RemoveAll(w.part)", Mutated: "err = nil"},
			Test: "TestKilledCheckpoints", Package: replay, Timeout: minutes,
		},
		{
			Name: "checkpoint/two-write-to-one-directory",
			Edit: Edit{
				File: write, Func: "Writer.makePart",
				Original: "unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)", Mutated: "error(nil)",
			},
			Test: "TestTwoWritersOfOneDirectory",
		},
		{
			Name: "checkpoint/taken-directories-are-replaced",
			Edit: Edit{File: write, Func: "free", Original: "len(entries) > 0", Mutated: "false"},
			Test: "TestCheckpointsThatEndEarlyLeaveNothing", Package: replay,
		},
		{
			Name: "checkpoint/ended-ones-leave-their-files",
			Edit: Edit{File: write, Func: "Writer.Abort", Original: "os.RemoveAll(w.part)", Mutated: "error(nil)"},
			Test: "TestCopiesEndWithTheirContext", Package: replay, Timeout: minutes,
		},
		{
			Name: "checkpoint/ended-ones-leave-their-parents",
			Edit: Edit{File: write, Func: "Writer.Abort", Original: "w.removeParents()", Mutated: "_ = w.created"},
			Test: "TestCopiesEndWithTheirContext", Package: replay, Timeout: minutes,
		},
		{
			Name: "checkpoint/a-lack-of-space-has-no-numbers",
			Edit: Edit{File: write, Func: "Writer.failed", Original: "mapfile.WithSpace(err, w.target, w.needed)", Mutated: "err"},
			Test: "TestCheckpointsOnSmallFileSystems", Package: replay, Timeout: minutes,
		},
		{
			Name: "checkpoint/has-items-without-rows",
			Edit: Edit{File: node, Func: "node.checkpoint", Original: "return copied.has(s), ctx.Err()", Mutated: "return copied.has(s) || true, ctx.Err()"},
			Test: "TestCheckpointOfRowsThatAreOverwritten", Timeout: minutes,
		},
		{
			Name: "checkpoint/rows-that-are-overwritten-are-not-counted",
			Edit: Edit{File: node, Func: "node.copyRows", Original: "copied.add(batch.Sequences())", Mutated: "_ = batch.Sequences()"},
			Test: "TestRestoredReplayIsAsTheCheckpointed", Args: []string{shrinkBriefly}, Timeout: minutes,
		},
	}
}

// ofRestoring returns the mutants of restoring checkpoints.
func ofRestoring() []Mutant { //nolint:funlen // a table
	const (
		load    = "services/replay/ring/load.go"
		node    = "services/replay/restoring.go"
		file    = "services/replay/file.go"
		log     = "services/replay/internal/saved/log.go"
		replay  = "services/replay"
		minutes = 4 * time.Minute
	)
	return []Mutant{
		{
			Name: "ring/loading-is-not-marked",
			Edit: Edit{
				File: load, Func: "Ring.beginLoad",
				Original: "!r.counter(counterLoading).CompareAndSwap(0, uint64(l.mark))", Mutated: "false",
			},
			Test: "TestTakeOverOfARingThatWasBeingFilled",
		},
		{
			Name: "ring/killed-loaders-area-is-reclaimed",
			Edit: Edit{File: "services/replay/ring/area.go", Func: "Ring.reclaim", Original: "r.loading().of(seen)", Mutated: "false"},
			Test: "TestTakeOverOfARingThatWasBeingFilled",
		},
		{
			Name: "ring/blocked-writers-use-up-the-loaders-numbers",
			Edit: Edit{File: "services/replay/ring/writer.go", Func: "allocator.reserve", Original: "r.loading() != 0", Mutated: "false"},
			Test: "TestTakeOverOfARingThatWasBeingFilled", Prints: `TestTakeOverOfARingThatWasBeingFilled/complete`,
		},
		{
			Name: "ring/part-of-the-rows-is-taken-over",
			Edit: Edit{File: load, Func: "Ring.endLoading", Original: "state&loaded == 0", Mutated: "false"},
			Test: "TestTakeOverOfARingThatWasBeingFilled", Prints: `TestTakeOverOfARingThatWasBeingFilled/begun`,
		},
		{
			Name: "ring/complete-rows-are-not-taken-over",
			Edit: Edit{File: load, Func: "Ring.endLoading", Original: "state&loaded == 0", Mutated: "true"},
			Test: "TestTakeOverOfARingThatWasBeingFilled", Prints: `TestTakeOverOfARingThatWasBeingFilled/complete`,
		},
		{
			Name: "ring/number-stays-advanced",
			Edit: Edit{File: load, Func: "Ring.clear", Original: "r.counter(counterHead).Store(0)", Mutated: "_ = r.counter(counterHead)"},
			Test: "TestTakeOverOfARingThatWasBeingFilled", Prints: `the ring is not empty`,
		},
		{
			Name: "ring/words-stay",
			Edit: Edit{File: load, Func: "Ring.clear", Original: "words[i].Store(0)", Mutated: "_ = words[i].Load()"},
			Test: "TestTakeOverOfARingThatWasBeingFilled", Prints: `TestTakeOverOfARingThatWasBeingFilled/readable`,
		},
		{
			Name: "ring/rows-written-stay",
			Edit: Edit{File: load, Func: "Ring.clear", Original: "r.participantWritten(r.self, 0).Store(0)", Mutated: "_ = r.self"},
			Test: "TestTakeOverOfARingThatWasBeingFilled", Prints: `TestTakeOverOfARingThatWasBeingFilled/readable`,
		},
		{
			Name: "ring/words-of-loaded-rows-recur",
			Edit: Edit{File: load, Func: "Loader.publish", Original: "published() + changes", Mutated: "published() + 0*changes"},
			Test: "TestTakeOverOfARingThatWasBeingFilled", Prints: `a word never recurs`,
		},
		{
			Name: "ring/rows-are-loaded-twice",
			Edit: Edit{File: load, Func: "Loader.Put", Original: "l.has(slot+rows)", Mutated: "false"},
			Test: "TestLoadedRowsHaveTheirNumbers",
		},
		{
			Name: "ring/aborted-load-keeps-its-numbers",
			Edit: Edit{File: load, Func: "Loader.Abort", Original: "l.ring.counter(counterHead).Store(0)", Mutated: "_ = l.ring"},
			Test: "TestAbortedLoadLeavesAnEmptyRing",
		},
		{
			Name: "replay/items-of-half-a-restore-are-taken-over",
			Edit: Edit{File: file, Func: "restoreTables", Original: "if !loading {", Mutated: "if !loading || true {"},
			Also: []Edit{{File: file, Func: "restoreTables", Original: "case loading:", Mutated: "case loading && false:"}},
			Test: "TestFilesOfARestoreAreWholeAtEachStep",
		},
		{
			Name: "replay/items-of-a-refused-restore-stay",
			Edit: Edit{File: file, Func: "openFile.adopt", Original: "replacement.Abort()); replaced {", Mutated: "replacement.Abort()); replaced && false {"},
			Test: "TestFilesOfARestoreAreWholeAtEachStep",
		},
		{
			Name: "replay/items-are-saved-after-the-rows",
			Edit: Edit{
				File: file, Func: "openFile.adopt",
				Original: "if err := replacement.Commit(); err != nil { return err } replaced = true return commit()",
				Mutated:  "if err := commit(); err != nil { return err }; replaced = false; return nil",
			},
			Test: "TestFilesOfARestoreAreWholeAtEachStep",
		},
		{
			Name: "replay/full-disk-leaves-a-file-of-items",
			Edit: Edit{File: log, Func: "Log.Prepare", Original: "errors.Join(err, l.abandonRewrite())", Mutated: "err"},
			Test: "TestRestoreOnSmallFileSystems", Package: replay, Timeout: minutes,
		},
		{
			Name: "replay/restore-does-not-name-the-space",
			Edit: Edit{
				File: log, Func: "Log.withSpace",
				Original: "mapfile.WithSpace(err, l.path, uint64(sized.next.out.end)+maxCommit*uint64(len(tables)+1))",
				Mutated:  "err",
			},
			Test: "TestRestoreOnSmallFileSystems", Package: replay, Timeout: minutes,
		},
		{
			Name: "replay/differences-are-not-reported",
			Edit: Edit{File: node, Func: "node.compare", Original: "saved != now", Mutated: "false"},
			Test: "TestRestoreLetsTheConfigurationWinAndSaysWhere",
		},
		{
			Name: "replay/written-rings-are-restored",
			Edit: Edit{File: node, Func: "node.vacant", Original: "stats.Written > 0", Mutated: "false"},
			Test: "TestRestoreRefusesWhatItCannotRestore",
		},
		{
			Name: "replay/items-without-rows-are-restored",
			Edit: Edit{File: node, Func: "restoring.keeps", Original: "!hasRows(s, rt.loader.Has)", Mutated: "false"},
			Test: "TestRestoreLetsTheConfigurationWinAndSaysWhere",
		},
		{
			Name: "replay/other-columns-are-restored",
			Edit: Edit{
				File: node, Func: "node.compare",
				Original: `compareColumns("", saved.Columns, layout.Columns)`, Mutated: `compareColumns("", layout.Columns, layout.Columns)`,
			},
			Test: "TestRestoreRefusesWhatItCannotRestore",
		},
		{
			Name: "replay/rows-are-readable-before-the-items",
			Edit: Edit{File: node, Func: "node.adopt", Original: "if n.file != nil { return n.file.adopt(n.tables, tables, copies, commit) }", Mutated: ""},
			Test: "TestFilesOfARestoreAreWholeAtEachStep",
		},
	}
}
