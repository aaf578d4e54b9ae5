package mutants

import "time"

// ofDraws returns the mutants of what samplers draw, and of the shape of their batches.
func ofDraws() []Mutant {
	return []Mutant{
		{
			Name: "replay/priorities-have-another-exponent",
			Edit: Edit{
				File: "services/replay/tablemessage.go", Func: "selectorOf",
				Original: "Exponent: s.GetExponent()", Mutated: "Exponent: 1.1 * s.GetExponent()",
			},
			Test: "TestSamplersDrawWithTheirDistributions",
		},
		{
			Name: "replay/prefetched-batches-have-fewer-draws",
			Edit: Edit{
				File: "services/replay/draw.go", Func: "Sampler.drawAhead",
				Original: "b, err = s.fill(s.ctx)",
				Mutated:  "b, err = s.fill(s.ctx); if b != nil && len(b.Info) > 9 { b.Info[8] = b.Info[9] }",
			},
			Test: "TestSamplersDrawWithTheirDistributions",
		},
		{
			Name: "replay/items-are-not-given-back-after-a-failed-call",
			Edit: Edit{File: "services/replay/draw.go", Func: "Sampler.response", Original: "s.returned += call.returned", Mutated: "_ = s"},
			Test: "TestReplacedItemsAreGivenBackAfterAFailedCall",
		},
		{
			Name: "replay/any-number-of-batches-is-drawn-ahead",
			Edit: Edit{File: "services/replay/draw.go", Func: "Sampler.drawAhead", Original: "a.owed -= s.options.batch", Mutated: "_ = a"},
			Test: "TestSamplersDrawAsManyBatchesAheadAsTheyShould", Timeout: 10 * time.Second, Prints: `is not less than or equal to|test timed out`,
		},
		{
			Name: "replay/rows-are-never-copied-ahead-again",
			Edit: Edit{File: "services/replay/sampler.go", Func: "Sampler.pace", Original: "s.hurried = 0", Mutated: "_ = now"},
			Test: "TestSamplersThatAreCalledAtOnceCopyNoRowsAhead",
		},
		{
			Name: "replay/batches-that-next-fills-have-fewer-draws",
			Edit: Edit{
				File: "services/replay/draw.go", Func: "Sampler.drawOne",
				Original: "b, err = s.fill(s.ctx)",
				Mutated:  "b, err = s.fill(s.ctx); if b != nil && len(b.Info) > 9 { b.Info[8] = b.Info[9] }",
			},
			Test: "TestSamplersDrawWithTheirDistributions",
		},
		{
			Name: "replay/batches-wait-for-those-behind-them",
			Edit: Edit{File: "services/replay/draw.go", Func: "Sampler.due", Original: "return missing", Mutated: "return left"},
			Test: "TestBatchesDoNotWaitForThoseBehindThem",
		},
		{
			Name: "replay/items-drawn-ahead-are-drawn-again",
			Edit: Edit{
				File: "services/replay/draw.go", Func: "Sampler.due",
				Original: "a.owed - (batch - missing) - pending", Mutated: "a.owed - (batch - missing)",
			},
			Test: "TestSamplersDrawAsManyBatchesAheadAsTheyShould", Timeout: 10 * time.Second, Prints: `is not less than or equal to|test timed out`,
		},
		{
			Name: "replay/items-requested-ahead-are-requested-again",
			Edit: Edit{File: "services/replay/draw.go", Func: "Sampler.due", Original: "left -= call.items", Mutated: "_ = call"},
			Test: "TestSamplersDrawAsManyBatchesAheadAsTheyShould", Timeout: 10 * time.Second, Prints: `is not less than or equal to|test timed out`,
		},
		{
			Name: "replay/calls-in-flight-lose-the-order",
			Edit: Edit{
				File: "services/replay/draw.go", Func: "Sampler.concurrent",
				Original: "kind == table.Uniform || kind == table.Prioritized", Mutated: "kind <= table.Prioritized || kind > table.Prioritized",
			},
			Test: "TestDrawsAheadKeepTheOrder", Args: []string{"-test.count=3"},
		},
		{
			Name: "replay/probabilities-are-those-of-other-draws",
			Edit: Edit{
				File:     "services/replay/columnmessage.go",
				Original: "math.Float64bits(s.Probability)", Mutated: "math.Float64bits(1.0 / 20)",
			},
			Test: "TestProbabilitiesAreThoseOfTheDraws",
		},
		{
			Name: "replay/longer-items-are-cut-off",
			Edit: Edit{
				File: "services/replay/draw.go", Func: "Sampler.nextItem",
				Original: "err == nil && s.options.length > 0 && rows > s.options.length", Mutated: "rows < 0",
			},
			Test: "TestBatchesOfALengthHaveTheSameShape",
		},
	}
}
