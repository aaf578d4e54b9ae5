package mutants

// ofStorageTable returns the mutants of the storage's state in memory.
func ofStorageTable() []Mutant {
	const directory = "services/storage/internal/table/"
	modelled := []string{shrinkBriefly, "-rapid.checks=1000"}
	rows := []struct {
		name, file, function, original, mutated, test string
		args                                          []string
	}{
		{
			"rollback-forgets-the-index", "table.go", "Table.Rollback",
			"t.index.remove(at.slot)", "_ = at", "TestTableMatchesModel", modelled,
		},
		{
			"rollback-keeps-a-committed-removal", "table.go", "Table.Rollback",
			"w.before.id > t.committedID", "true", "TestTableMatchesModel", modelled,
		},
		{
			"removed-ids-are-forgotten-with-a-rollback", "table.go", "Table.Rollback",
			"t.given -= last.ids", "t.removed = slices.Delete(t.removed, 0, last.ids); t.given -= last.ids",
			"TestTableMatchesModel", modelled,
		},
		{
			"committed-removal-removes-a-later-write", "table.go", "Table.Committed",
			"current == w.now", "current != nil", "TestTableMatchesModel", modelled,
		},
		{
			"new-keys-are-not-in-order", "index.go", "index.add",
			"!x.unordered", "false", "TestTableMatchesModel", modelled,
		},
		{
			"order-is-not-needed", "index.go", "index.order",
			"x.sort(items, 0)", "_ = items", "TestTableMatchesModel", modelled,
		},
		{
			"order-of-long-keys-is-not-known", "index.go", "partOf",
			"byte(min(len(rest), partBytes+1))", "0", "TestManyKeysStayInOrder", nil,
		},
		{
			"colliding-keys-are-the-same", "index.go", "index.find",
			"r.key() == key", "r != nil", "TestTableMatchesModel", modelled,
		},
		{
			"index-never-shrinks", "index.go", "index.remove",
			"x.used < int(x.limit/sparse)", "false", "TestManyKeysStayInOrder", nil,
		},
		{
			"index-is-not-counted", "table.go", "Table.takes",
			"t.index.bytes()", "0", "TestUsageIsTheHeapsGrowth", nil,
		},
		{
			"size-class-is-not-counted", "record.go", "newRecord",
			"allocated(words)", "words/2", "TestUsageIsTheHeapsGrowth", nil,
		},
		{
			"replaced-entry-expires", "table.go", "Table.replace",
			"before.expires != 0", "false", "TestOverwrittenExpiriesLeaveNothingBehind", nil,
		},
		{
			"damaged-text-is-restored", "decode.go", "parsed.checkDecoded",
			"!utf8.Valid(p.raw)", "false", "TestRestoreRefusesDamagedRecords", nil,
		},
		{
			"damaged-value-is-restored", "decode.go", "parsed.checkDecoded",
			"unmarshal.Unmarshal(p.raw, new(structpb.Value))", "proto.Unmarshal(nil, new(structpb.Value))", "TestRestoreRefusesDamagedRecords", nil,
		},
		{
			"field-is-restored-twice", "decode.go", "field.next",
			"number <= f.number", "false", "TestRestoreRefusesDamagedRecords", nil,
		},
		{
			"record-of-another-id-is-restored", "table.go", "Table.Restore",
			"c.id != id", "false", "TestRestoreRefusesDamagedRecords", nil,
		},
	}
	mutants := make([]Mutant, len(rows))
	for i, r := range rows {
		mutants[i] = Mutant{
			Name: "storage-table/" + r.name,
			Edit: Edit{File: directory + r.file, Func: r.function, Original: r.original, Mutated: r.mutated},
			Test: r.test, Args: r.args,
		}
	}
	return mutants
}
