package mutants

// ofSafetensorsHeaders returns the mutants of parsing safetensors headers.
func ofSafetensorsHeaders() []Mutant {
	const header = "services/ps/safetensors/header.go"
	return []Mutant{
		{
			Name: "safetensors/holes-are-accepted",
			Edit: Edit{File: header, Func: "entry.check", Original: "e.begin > covered", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `a_hole_between_tensors`,
		},
		{
			Name: "safetensors/overlaps-are-accepted",
			Edit: Edit{File: header, Func: "entry.check", Original: "e.begin < covered", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `an_overlap`,
		},
		{
			Name: "safetensors/data-over-the-end-are-accepted",
			Edit: Edit{File: header, Func: "entry.check", Original: "e.end > data", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `data_over_the_end`,
		},
		{
			Name: "safetensors/size-is-not-compared-with-the-shape",
			Edit: Edit{File: header, Func: "entry.check", Original: "size != e.end-e.begin", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `a_size_that_is_not_the_shape's`,
		},
		{
			Name: "safetensors/names-may-occur-twice",
			Edit: Edit{File: header, Func: "scanner.parse", Original: "names[string(name)]; ok", Mutated: "names[string(name)]; ok && false"},
			Test: "TestHostileContentIsRefused", Prints: `two_tensors_of_one_name`,
		},
		{
			Name: "safetensors/keys-may-occur-twice",
			Edit: Edit{File: header, Func: "scanner.metadata", Original: "metadata[string(name)]; ok", Mutated: "metadata[string(name)]; ok && false"},
			Test: "TestHostileContentIsRefused", Prints: `a_key_of_the_metadata_twice`,
		},
		{
			Name: "safetensors/fields-may-occur-twice",
			Edit: Edit{File: header, Func: "scanner.entry", Original: "seen&field != 0", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `a_field_twice`,
		},
		{
			Name: "safetensors/fields-may-be-missing",
			Edit: Edit{File: header, Func: "scanner.entry", Original: "seen != all", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `no_offsets`,
		},
		{
			Name: "safetensors/dimensions-are-not-bounded",
			Edit: Edit{File: header, Func: "scanner.shape", Original: "len(shape) == MaxRank", Mutated: "false"},
			Test: "TestMemoryOfParseIsBoundedByTheHeader",
		},
		{
			Name: "safetensors/invalid-text-is-accepted",
			Edit: Edit{File: header, Func: "parseHeader", Original: "!utf8.Valid(header)", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `invalid_UTF-8`,
		},
		{
			Name: "safetensors/half-characters-are-accepted",
			Edit: Edit{File: header, Func: "scanner.unicode", Original: "r == utf8.RuneError", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `half_a_character`,
		},
		{
			Name: "safetensors/text-may-follow-the-header",
			Edit: Edit{File: header, Func: "scanner.parse", Original: "s.peek() != 0", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `two_objects`,
		},
	}
}

// ofSafetensors returns the other mutants of safetensors content.
func ofSafetensors() []Mutant {
	const tensors = "services/ps/safetensors/"
	return []Mutant{
		{
			Name: "safetensors/data-of-no-tensor-are-accepted",
			Edit: Edit{File: tensors + "safetensors.go", Func: "parse", Original: "covered != total-size", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `data_without_tensors`,
		},
		{
			Name: "safetensors/elements-may-overflow",
			Edit: Edit{File: tensors + "size.go", Func: "dataSize", Original: "; high != 0 {", Mutated: "; high != 0 && false {"},
			Test: "TestHostileContentIsRefused", Prints: `an_overflow_before_a_zero`,
		},
		{
			Name: "safetensors/bits-may-overflow",
			Edit: Edit{File: tensors + "size.go", Func: "dataSize", Original: "if high != 0 {", Mutated: "if high != 0 && false {"},
			Test: "TestHostileContentIsRefused", Prints: `bits_that_overflow_to_the_right_number`,
		},
		{
			Name: "safetensors/elements-may-end-within-a-byte",
			Edit: Edit{File: tensors + "size.go", Func: "dataSize", Original: "total%8 != 0", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `within_a_byte`,
		},
		{
			Name: "safetensors/header-is-not-bounded",
			Edit: Edit{File: tensors + "safetensors.go", Func: "HeaderSize", Original: "length > MaxHeader", Mutated: "false"},
			Test: "TestHostileContentIsRefused", Prints: `out of range`,
		},
		{
			Name: "safetensors/appending-overwrites-the-next-tensor",
			Edit: Edit{File: tensors + "safetensors.go", Func: "Parse", Original: "data[:size:size]", Mutated: "data[:size]"},
			Test: "TestParsedTensorsAreViewsOfTheContent", Prints: `appending`,
		},
		{
			Name: "safetensors/callers-share-the-shape",
			Edit: Edit{
				File: tensors + "safetensors.go", Func: "Tensor.clone",
				Original: "t.Shape = slices.Clone(t.Shape)", Mutated: "_ = slices.Clone(t.Shape)",
			},
			Test: "TestCallersCannotModifyTheFile",
		},
		{
			Name: "safetensors/tensors-are-not-aligned",
			Edit: Edit{
				File: tensors + "layout.go", Func: "Layout",
				Original: "-cmp.Compare(elementBits[a.DType], elementBits[b.DType])", Mutated: "0",
			},
			Test: "TestContentRoundTrips", Prints: `aligned to its elements`, Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "safetensors/data-are-not-aligned",
			Edit: Edit{File: tensors + "layout.go", Func: "Layout", Original: "len(header)%dataAlignment != 0", Mutated: "false"},
			Test: "TestContentRoundTrips", Prints: `aligned to cache lines`, Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "safetensors/quotes-are-not-escaped",
			Edit: Edit{File: tensors + "layout.go", Func: "appendString", Original: `c == '"' || c == '\\'`, Mutated: "false"},
			Test: "TestContentRoundTrips", Args: []string{shrinkBriefly, manyChecks},
		},
	}
}

// ofSaving returns the mutants of saving parameters in files.
func ofSaving() []Mutant {
	const files = "services/ps/archive/"
	return []Mutant{
		{
			Name: "archive/content-is-written-in-place",
			Edit: Edit{
				File: files + "archive.go", Func: "writer.begin",
				Original: "create(w.root, w.where.part(w.described.Write), content)",
				Mutated:  "w.root.WriteFile(w.where.content(w.described.Format), content, 0o600)",
			},
			Test: "TestEveryCrashLeavesOneCompleteVersion",
		},
		{
			Name: "archive/content-is-written-in-place-by-a-killed-process",
			Edit: Edit{
				File: files + "archive.go", Func: "writer.begin",
				Original: "create(w.root, w.where.part(w.described.Write), content)",
				Mutated:  "w.root.WriteFile(w.where.content(w.described.Format), content, 0o600)",
			},
			Test: "TestKilledWriterLeavesTheOldOrTheNewVersion", Prints: `is complete`,
		},
		{
			Name: "archive/readers-ignore-an-unfinished-write",
			Edit: Edit{
				File: files + "archive.go", Func: "readContent",
				Original: "name := where.part(d.Write)",
				Mutated:  "name := where.content(d.Format)",
			},
			Test: "TestEveryCrashLeavesOneCompleteVersion",
		},
		{
			Name: "archive/committed-content-is-removed",
			Edit: Edit{File: files + "archive.go", Func: "settle", Original: "committed = where.part(d.Write)", Mutated: "_ = where.part(d.Write)"},
			Test: "TestEveryCrashLeavesOneCompleteVersion",
		},
		{
			Name: "archive/old-format-is-left",
			Edit: Edit{File: files + "archive.go", Func: "settle", Original: "other != d.Format", Mutated: "false"},
			Test: "TestNewVersionReplacesOldOne",
		},
		{
			Name: "archive/leftovers-are-kept",
			Edit: Edit{File: files + "archive.go", Func: "settle", Original: "name != committed", Mutated: "false"},
			Test: "TestWriteRemovesWhatCrashedOnesLeft",
		},
		{
			Name: "archive/failed-write-leaves-its-files",
			Edit: Edit{File: files + "archive.go", Func: "write", Original: "errors.Join(err, w.abandon())", Mutated: "err"},
			Test: "TestFoldersOfOtherProgramsAreKept", Prints: `as before`,
		},
		{
			Name: "archive/writers-do-not-wait-for-each-other",
			Edit: Edit{File: files + "file.go", Func: "lock", Original: "unix.Flock(int(folder.Fd()), unix.LOCK_EX)", Mutated: "nil"},
			Test: "TestReadersBesideWritersSeeCompleteVersions",
		},
		{
			Name: "archive/readers-do-not-try-again",
			Edit: Edit{File: files + "archive.go", Func: "read", Original: "text == previous", Mutated: "text == previous || true"},
			Test: "TestReadersBesideWritersSeeCompleteVersions", Prints: `Received unexpected error`,
		},
		{
			Name: "archive/checksum-is-not-compared",
			Edit: Edit{
				File: files + "archive.go", Func: "readContent",
				Original: "sum != uint32(d.Checksum)",
				Mutated:  "sum != uint32(d.Checksum) && false",
			},
			Test: "TestDamagedFilesAreRefused", Prints: `a_changed_byte`,
		},
	}
}

// ofSavedFiles returns the mutants of what saved files may be.
func ofSavedFiles() []Mutant {
	const files = "services/ps/archive/"
	return []Mutant{
		{
			Name: "archive/damaged-content-is-saved",
			Edit: Edit{File: files + "archive.go", Func: "write", Original: "version.GetChecksum() != sum", Mutated: "false"},
			Test: "TestInvalidArgumentsAreRefused", Prints: `wrong_checksum`,
		},
		{
			Name: "archive/json-of-another-tag-is-accepted",
			Edit: Edit{File: files + "description.go", Func: "parseDescription", Original: "d.Tag != tag", Mutated: "false"},
			Test: "TestDamagedFilesAreRefused", Prints: `another_tag`,
		},
		{
			Name: "archive/path-in-the-json-is-accepted",
			Edit: Edit{File: files + "description.go", Func: "parseDescription", Original: "!isID(d.Write)", Mutated: "false"},
			Test: "TestDamagedFilesAreRefused", Prints: `a_path_as_write`,
		},
		{
			Name: "archive/pipes-are-opened",
			Edit: Edit{File: files + "file.go", Func: "openFile", Original: "!info.Mode().IsRegular()", Mutated: "false"},
			Test: "TestDamagedFilesAreRefused", Prints: `a_pipe_as_content`,
		},
		{
			Name: "archive/dots-lead-out-of-the-directory",
			Edit: Edit{File: files + "location.go", Func: "escape", Original: "c == '.' && !first", Mutated: "c == '.'"},
			Test: "TestTagsNeverShareALocation", Prints: `hidden names`, Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "archive/case-is-lost",
			Edit: Edit{File: files + "location.go", Func: "escape", Original: `"!" + string(`, Mutated: `"" + string(`},
			Test: "TestTagsNeverShareALocation", Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "archive/folder-may-be-a-file",
			Edit: Edit{File: files + "location.go", Func: "locate", Original: "*last = escapeSuffix(*last)", Mutated: "_ = last"},
			Test: "TestTagsNeverShareALocation", Prints: `could be a file`, Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "archive/names-are-too-long",
			Edit: Edit{File: files + "location.go", Func: "appendNames", Original: "name.Len()+len(escaped) > maxName", Mutated: "false"},
			Test: "TestTagsNeverShareALocation", Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "archive/foreign-json-is-listed",
			Edit: Edit{File: files + "archive.go", Func: "list", Original: "ok && contents[stem]", Mutated: "ok"},
			Test: "TestSafetensorsOfOtherProgramsAreRead",
		},
	}
}

// ofTensors returns the mutants of a client's tensors, and of saving and loading by it.
func ofTensors() []Mutant {
	const files = "services/ps/"
	return []Mutant{
		{
			Name: "ps/saved-id-is-not-kept",
			Edit: Edit{File: files + "saving.go", Func: "Client.pushSaved", Original: "saved.GetId() > 0", Mutated: "false"},
			Test: "TestSavedParametersAreLoadedIntoAnotherSystem",
		},
		{
			Name: "ps/late-saved-version-is-not-loaded",
			Edit: Edit{
				File: files + "saving.go", Func: "Client.pushSaved",
				Original: "connect.CodeOf(err) != connect.CodeAborted",
				Mutated:  "connect.CodeOf(err) != connect.CodeAborted || true",
			},
			Test: "TestSavedParametersAreLoadedIntoAnotherSystem",
		},
		{
			Name: "ps/saved-info-is-lost",
			Edit: Edit{File: files + "saving.go", Func: "Client.pushSaved", Original: "len(saved.GetInfo()) > 0", Mutated: "false"},
			Test: "TestSavedParametersAreLoadedIntoAnotherSystem",
		},
		{
			Name: "ps/first-error-ends-saving",
			Edit: Edit{File: files + "saving.go", Func: "Client.SaveAll", Original: "errs = append(errs, err)", Mutated: "return err"},
			Test: "TestOneTagsFailureDoesNotAffectTheOthers",
		},
		{
			Name: "ps/first-error-ends-loading",
			Edit: Edit{File: files + "saving.go", Func: "Client.LoadAll", Original: "errs = append(errs, err)", Mutated: "return versions, err"},
			Test: "TestOneTagsFailureDoesNotAffectTheOthers",
		},
		{
			Name: "ps/mapped-follower-has-all-tensors",
			Edit: Edit{File: files + "tensors.go", Func: "Client.pullIfNewer", Original: "!o.match(t.Name)", Mutated: "false"},
			Test: "TestFollowerOfTensorsHasOnlyThose",
		},
		{
			Name: "ps/follower-fetches-all-tensors",
			Edit: Edit{File: files + "tensors.go", Func: "newSelection", Original: "!match(t.Name)", Mutated: "false"},
			Test: "TestOnlyChunksOfWantedTensorsAreTransferred",
		},
		{
			Name: "ps/chunk-is-fetched-twice",
			Edit: Edit{File: files + "tensors.go", Func: "selection.add", Original: "first <= end", Mutated: "false"},
			Test: "TestOnlyChunksOfWantedTensorsAreTransferred",
		},
		{
			Name: "ps/fetched-tensors-are-not-verified",
			Edit: Edit{
				File: files + "tensors.go", Func: "Client.fetchRanges",
				Original: "store.Checksum(chunk.GetData()) != chunk.GetChecksum()",
				Mutated:  "false",
			},
			Test: "TestDamagedChunksOfTensorsAreRefused", Prints: `damaged`,
		},
		{
			Name: "ps/missing-chunks-are-ignored",
			Edit: Edit{File: files + "tensors.go", Func: "Client.fetchRanges", Original: "len(missing) > 0", Mutated: "false"},
			Test: "TestDamagedChunksOfTensorsAreRefused", Prints: `missing`,
		},
		{
			Name: "ps/replaced-version-fails-the-follower",
			Edit: Edit{
				File: files + "tensors.go", Func: "Client.fetchTensors",
				Original: "errors.Is(err, errReplaced) && ctx.Err() == nil",
				Mutated:  "false",
			},
			Test: "TestTensorsOfAReplacedVersionAreNotMixed",
		},
		{
			Name: "ps/header-is-fetched-by-tag",
			Edit: Edit{
				File: files + "tensors.go", Func: "Client.fetchSelected",
				Original: "Content: version.GetContent(), Ranges: wanted.ranges",
				Mutated:  "Tag: tag, Ranges: wanted.ranges",
			},
			Test: "TestTensorsOfAReplacedVersionAreNotMixed",
		},
	}
}
