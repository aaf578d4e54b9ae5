package mutants

// ofLife returns the mutants of replays with a file, which the next node takes over.
func ofLife() []Mutant {
	const (
		ring    = "services/replay/ring/"
		replay  = "services/replay/"
		saved   = replay + "internal/saved/"
		table   = replay + "internal/table/"
		refused = "TestFilesThatCannotBeUsedAreRefused/"
	)
	args := []string{shrinkBriefly}
	takeOver := func(name, test string, e Edit) Mutant { return Mutant{Name: "ring/" + name, Edit: e, Test: test} }
	log := func(name string, e Edit) Mutant {
		return Mutant{Name: "saved/" + name, Edit: e, Test: "TestLogMatchesTable", Args: args, Timeout: limit}
	}
	return []Mutant{
		takeOver("areas-of-the-creator-before-are-held-for-ever", "TestTakeOverGivesUpWhatTheCreatorHad", Edit{
			File: ring + "participant.go", Func: "Ring.claimIndex", Original: "state.Load() != 0", Mutated: "state.Load() != 0 && index != ownerIndex",
		}),
		takeOver("living-creators-are-replaced", "TestTakeOverGivesUpWhatTheCreatorHad", Edit{
			File: ring + "takeover.go", Func: "Ring.takeOver",
			Original: "mapfile.Lock(r.file, r.participantOffset(ownerIndex))", Mutated: "error(nil)",
		}),
		takeOver("ring-that-was-taken-over-stays-ended", "TestTakeOverOfAnEndedRing", Edit{
			File: ring + "takeover.go", Func: "Ring.takeOver", Original: "Store(0)", Mutated: "Add(0)",
		}),
		{
			Name: "replay/files-of-an-earlier-boot-are-used",
			Edit: Edit{File: ring + "ring.go", Func: "Ring.load", Original: "head.boot != boot", Mutated: "head.boot != boot && false"},
			Test: refused + "another_boot", Package: replay,
		},
		{
			Name: "replay/files-of-another-capacity-are-used",
			Edit: Edit{File: replay + "file.go", Func: "compareLayouts", Original: "want.Capacity != got.Capacity", Mutated: "false"},
			Test: refused + "another_capacity",
		},
		{
			Name: "replay/items-of-another-ring-are-used",
			Edit: Edit{File: replay + "file.go", Func: "readItems", Original: "!bytes.Equal(content.Owner, id[:])", Mutated: "false"},
			Test: refused + "items_of_another_ring",
		},
		{
			Name: "replay/missing-items-are-none",
			Edit: Edit{File: replay + "file.go", Func: "restoreTables", Original: "mark == 0", Mutated: "true"},
			Test: refused + "no_items",
		},
		{
			Name: "replay/keys-are-given-out-again-after-a-takeover",
			Edit: Edit{
				File: replay + "file.go", Func: "restoreTables",
				Original: "before.Meta.Number = max(before.Meta.Number, mark)", Mutated: "_ = mark",
			},
			Test: "TestKeysOfLostItemsAreStale",
		},
		{
			Name: "table/numbers-are-not-reserved",
			Edit: Edit{File: table + "table.go", Func: "Table.nextNumber", Original: "t.number + reserveStep", Mutated: "t.number - 1"},
			Test: "TestReservedNumbersAreNotUsedAgain",
		},
		{
			Name: "replay/clients-leave-rings-that-were-taken-over",
			Edit: Edit{File: replay + "client.go", Func: "Client.takenOver", Original: "!served", Mutated: "served"},
			Test: "TestNextNodeTakesOverTheFile",
		},
		{
			Name: "replay/items-of-a-full-disk-are-forgotten",
			Edit: Edit{
				File: saved + "log.go", Func: "Log.flush",
				Original: `return fmt.Errorf("save the items in %s: %w", l.path, err)`,
				Mutated:  `l.buf = l.buf[:0]; return fmt.Errorf("save the items in %s: %w", l.path, err)`,
			},
			Test: "TestFullDisk", Package: replay,
		},
		log("new-files-lack-what-changes-meanwhile", Edit{
			File: saved + "log.go", Func: "Log.flush", Original: "l.next != nil", Mutated: "l.next != nil && false",
		}),
		{
			Name: "saved/records-take-effect-without-a-commit",
			Edit: Edit{File: saved + "saved.go", Func: "Read", Original: "k == kindCommit", Mutated: "k >= kindTable"},
			Test: "TestFileMatchesTable", Args: args, Timeout: limit,
		},
		{
			Name: "table/items-are-drawn-in-every-epoch",
			Edit: Edit{File: table + "state.go", Func: "Restore", Original: "s.Epoch == meta.Epoch", Mutated: "true"},
			Test: "TestItemsOfEarlierEpochsCanBeDrawn",
		},
		{
			Name: "saved/damaged-records-are-applied",
			Edit: Edit{File: saved + "saved.go", Func: "scan", Original: "checksum(payload) != binary.LittleEndian.Uint32(header[4:])", Mutated: "false"},
			Test: "TestAnyDamageIsNoticed",
		},
		{
			Name: "saved/damaged-lengths-end-the-file",
			Edit: Edit{File: saved + "saved.go", Func: "scan", Original: "checksum(header[:9]) != binary.LittleEndian.Uint32(header[9:])", Mutated: "false"},
			Test: "TestAnyDamageIsNoticed",
		},
		{
			Name: "saved/items-of-overwritten-rows-come-back",
			Edit: Edit{File: saved + "saved.go", Func: "Table.Items", Original: "it.first < t.Meta.Oldest", Mutated: "false"},
			Test: "TestItemsOfOverwrittenRowsHaveLeft",
		},
	}
}

// ofAges returns the mutants of how old the items of a file may be, and of files that are refused.
func ofAges() []Mutant {
	const (
		saved   = "services/replay/internal/saved/"
		mapfile = "services/internal/mapfile/mapfile_linux.go"
		refused = "TestFilesThatCannotBeUsedAreRefused/"
	)
	return []Mutant{
		{
			Name: "replay/late-saves-are-not-logged",
			Edit: Edit{File: "services/replay/file.go", Func: "openFile.save", Original: "late <= maxAge", Mutated: "late > 0"},
			Test: "TestLateSavesAreLogged", Package: "services/replay",
		},
		{
			Name: "replay/links-to-files-are-followed",
			Edit: Edit{File: mapfile, Func: "Open", Original: "|unix.O_NOFOLLOW|", Mutated: "|"},
			Test: refused + "a_link", Package: "services/replay",
		},
		{
			Name: "mapfile/large-files-have-small-pages",
			Edit: Edit{File: mapfile, Func: "reserve", Original: "isTmpfs(&fs)", Mutated: "false"},
			Test: "TestLargeFilesHaveLargePages", Package: "services/internal/mapfile",
		},
		{
			Name: "mapfile/files-grow-by-small-pages",
			Edit: Edit{File: mapfile, Func: "reserveLarge", Original: "from < end", Mutated: "from < end && offset == 0"},
			Test: "TestLargeFilesHaveLargePages", Package: "services/internal/mapfile",
		},
		{
			Name: "mapfile/large-pages-are-mapped-as-small-ones",
			Edit: Edit{
				File: mapfile, Func: "mapAligned",
				Original: "(hugePage - uintptr(room)%hugePage) % hugePage", Mutated: "(hugePage - uintptr(room)%hugePage) % hugePage / 8192 * 4096",
			},
			Test: "TestLargeFilesHaveLargePages", Package: "services/internal/mapfile",
		},
		{
			Name: "mapfile/reserved-addresses-are-not-given-back",
			Edit: Edit{File: mapfile, Func: "mapAligned", Original: "unmap(room, before), ", Mutated: ""},
			Test: "TestMappingsLeaveNothingBehind", Package: "services/internal/mapfile",
		},
		{
			Name: "replay/files-that-are-not-regular-are-used",
			Edit: Edit{File: mapfile, Func: "check", Original: "stat.Mode&unix.S_IFMT != unix.S_IFREG", Mutated: "false"},
			Test: refused + "a_pipe", Package: "services/replay",
		},
		{
			Name: "replay/files-of-other-users-are-used",
			Edit: Edit{File: mapfile, Func: "check", Original: "int(stat.Uid) != os.Geteuid()", Mutated: "false"},
			Test: refused + "another_user's", Package: "services/replay",
		},
		{
			Name: "replay/parts-of-a-save-are-used",
			Edit: Edit{File: saved + "saved.go", Func: "Read", Original: "scan(file, end,", Mutated: "scan(file, size,"},
			Test: "TestItemsAreThoseOfTheLastCompleteSave", Package: "services/replay",
		},
		{
			Name: "saved/calls-collect-as-long-as-items-change",
			Edit: Edit{
				File: saved + "log.go", Func: "Log.Save",
				Original: "full = full && time.Since(begin) < collectTime", Mutated: "full = full && time.Since(begin) < 10*collectTime",
			},
			Test: "TestSavingIsBoundedThoughItemsAlwaysChange",
		},
		{
			Name: "saved/many-changes-take-many-turns",
			Edit: Edit{
				File: saved + "log.go", Func: "Log.collect",
				Original: "l.together = min(2*l.together, l.most)", Mutated: "_ = l.most",
			},
			Test: "TestManyChangesAreCollectedTogether",
		},
	}
}
