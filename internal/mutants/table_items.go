package mutants

// ofItems returns the mutants of items as writers create them and samplers read them.
func ofItems() []Mutant {
	const (
		at = "services/replay/ring/at.go"
	)
	return []Mutant{
		{
			Name: "ring/rows-of-other-numbers-are-read",
			Edit: Edit{File: at, Func: "ReadHead.At", Original: "drawn[ahead].word.holds(sequence) &&", Mutated: "true &&"},
			Test: "TestRowsAreReadByTheirSequenceNumbers",
		},
		{
			Name: "ring/lost-rows-keep-what-the-batch-had",
			Edit: Edit{File: at, Func: "ReadHead.At", Original: "clear(into.row(c, i))", Mutated: "_ = c"},
			Test: "TestRowsAreReadByTheirSequenceNumbers",
		},
	}
}
