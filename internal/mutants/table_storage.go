package mutants

// ofStorageClient returns the mutants of the storage's client.
func ofStorageClient() []Mutant {
	const directory = "services/storage/"
	rows := []struct{ name, file, function, original, mutated, test string }{
		{
			"update-puts-unconditionally", "update.go", "updateOnce",
			"[]PutOption{condition}", "[]PutOption{condition}[:0]", "TestUpdatesUnderContentionAreNotLost",
		},
		{
			"update-repeats-errors-of-its-function", "update.go", "updateOnce",
			"return zero, false, err\n\t}\n\tputs", "return zero, true, err\n\t}\n\tputs", "TestFailedUpdatesChangeNothing",
		},
		{
			"watch-resumes-before-what-it-yielded", "watchclient.go", "watch.once",
			"w.req.Since = &upTo", "_ = upTo", "TestWatchResumesWhereItWas",
		},
		{
			"client-keeps-the-buffer-of-its-caller", "options.go", "textValue",
			"bytes.Clone(v)", "v[:len(bytes.Clone(v))]", "TestJSONValuesBelongToTheirCallers",
		},
		{
			"client-keeps-the-values-of-its-caller", "client.go", "valueOf",
			"bytes.Clone(v)", "v[:len(bytes.Clone(v))]", "TestJSONValuesBelongToTheirCallers",
		},
		{
			"failed-save-replaces-the-file", "savefile.go", "savedFile.finish",
			"if err == nil {\n\t\tif err = os.Rename", "{\n\t\tif err = os.Rename", "TestFailingSaversLeaveTheOldFile",
		},
		{
			"savers-share-a-file", "savefile.go", "lockPart",
			"unix.LOCK_EX|unix.LOCK_NB", "unix.LOCK_SH|unix.LOCK_NB", "TestFailingSaversLeaveTheOldFile",
		},
		{
			"checksum-is-not-checked", "savefile.go", "savedReader.end",
			"footer.Checksum != sum", "false", "TestDamagedFilesAreRefused",
		},
		{
			"missing-key-is-not-noticed", "save.go", "missingError",
			"len(missing) == 0", "true", "TestOnlySelectedKeysAreSavedAndLoaded",
		},
	}
	mutants := make([]Mutant, 0, len(rows))
	for _, m := range rows {
		mutants = append(mutants, Mutant{
			Name: "storage/" + m.name,
			Edit: Edit{File: directory + m.file, Func: m.function, Original: m.original, Mutated: m.mutated},
			Test: m.test,
		})
	}
	return mutants
}
