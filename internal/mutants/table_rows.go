package mutants

// ofRows returns the mutants of columns: views, values and their conversion.
func ofRows() []Mutant {
	const (
		row       = "runtime/row/row.go"
		generated = "runtime/row/generated.go"
		float     = "runtime/row/float.go"
		generator = "cmd/protoc-gen-raylink/generator"
		refuses   = "TestViewRefusesBytesThatAreNotColumns"
		nearest   = "TestFloatsRoundToTheNearest"
	)
	return []Mutant{
		{
			Name: "row/length-of-columns-is-not-checked",
			Edit: Edit{File: row, Func: "Type.check", Original: "want != uint64(len(columns[i]))", Mutated: "want == 1"},
			Test: refuses,
		},
		{
			Name: "row/length-of-columns-overflows",
			Edit: Edit{File: row, Func: "Type.check", Original: "over != 0", Mutated: "over == 1<<63"},
			Test: refuses,
		},
		{
			Name: "row/alignment-is-not-checked",
			Edit: Edit{File: row, Func: "Type.check", Original: "address&uintptr(size-1) != 0", Mutated: "address == 0"},
			Test: refuses,
		},
		{
			Name: "row/empty-columns-must-be-aligned",
			Edit: Edit{File: row, Func: "Type.check", Original: "rows > 0", Mutated: "rows >= 0"},
			Test: "TestViewSharesMemory",
		},
		{
			Name: "row/new-rows-have-no-initial-values",
			Edit: Edit{File: row, Func: "Type.New", Original: "t.Initialize(columns)", Mutated: "clear(columns[0])"},
			Test: "TestNewHasInitialValues",
		},
		{
			Name:    "row/integers-are-cut-off",
			Edit:    Edit{File: generated, Func: "GeneratedMisfit", Original: "S(T(v)) != v", Mutated: "S(T(v)) != v && i < 0"},
			Package: generator,
			Test:    "TestIntegersThatDoNotFitAreRefusedAndChangeNothing",
		},
		{
			Name:    "row/bytes-other-than-1-are-false",
			Edit:    Edit{File: generated, Func: "GeneratedIsTrue", Original: "v != 0", Mutated: "v == 1"},
			Package: generator,
			Test:    "TestAnyByteOfAnotherProcessIsABool",
		},
		{
			Name: "row/floats-are-cut-off",
			Edit: Edit{File: float, Func: "narrow", Original: "math.RoundToEven", Mutated: "math.Floor"},
			Test: nearest, Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "row/ties-of-floats-are-rounded-up",
			Edit: Edit{File: float, Func: "narrow", Original: "math.RoundToEven", Mutated: "math.Round"},
			Test: nearest, Prints: `is a tie`, Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "row/large-floats-become-nan",
			Edit: Edit{File: float, Func: "narrow", Original: "min(encoded, uint64(infinity))", Mutated: "encoded"},
			Test: "TestFloat16IsItsOwnInverse",
		},
	}
}

// ofRowSchemas returns the mutants of what the generator refuses in rows.
func ofRowSchemas() []Mutant {
	const rows = "cmd/protoc-gen-raylink/generator/rows.go"
	return []Mutant{
		{
			Name: "generator/optional-fields-are-columns",
			Edit: Edit{File: rows, Func: "noColumn", Original: "!desc.HasPresence()", Mutated: "desc != nil"},
			Test: "TestRowRefusals",
		},
		{
			Name: "generator/column-without-a-row-is-ignored",
			Edit: Edit{File: rows, Func: "rowsReader.message", Original: "case isColumn:", Mutated: "case isColumn && isRow:"},
			Test: "TestRefusalsOfRowsAsAWhole",
		},
		{
			Name: "generator/shapes-overflow",
			Edit: Edit{File: rows, Func: "column.measure", Original: "over != 0", Mutated: "over > 1"},
			Test: "TestRowRefusals",
		},
		{
			Name: "generator/rows-overflow",
			Edit: Edit{File: rows, Func: "rowsReader.checkRow", Original: "size > row.MaxBytes", Mutated: "size > 2*row.MaxBytes"},
			Test: "TestRowRefusals",
		},
		{
			Name: "generator/initial-floats-become-infinite",
			Edit: Edit{
				File: rows, Func: "checkedFloat",
				Original: "math.IsInf(rounded, 0) && !math.IsInf(v, 0)", Mutated: "math.IsNaN(rounded) && !math.IsNaN(v)",
			},
			Test: "TestRowRefusals",
		},
		{
			Name: "generator/initial-integers-are-cut-off",
			Edit: Edit{File: rows, Func: "initialInteger", Original: "v > most", Mutated: "v > 2*most+4"},
			Test: "TestRowRefusals",
		},
		{
			Name: "generator/names-of-columns-do-not-yield",
			Edit: Edit{
				File: "cmd/protoc-gen-raylink/generator/names.go", Func: "newRowNames",
				Original: "taken[field.GoName] = true", Mutated: "taken[field.GoName] = false",
			},
			Test: "TestNamesNeverMeet", Prints: `is declared twice in`, Args: []string{shrinkBriefly, manyChecks},
		},
	}
}
