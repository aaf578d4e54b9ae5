package mutants

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
				File: "services/replay/sampler.go", Func: "Sampler.fetch",
				Original: "next.batch, next.err = s.draw(s.ctx, true)",
				Mutated:  "next.batch, next.err = s.draw(s.ctx, true); if b := next.batch; b != nil && len(b.Info) > 9 { b.Info[8] = b.Info[9] }",
			},
			Test: "TestSamplersDrawWithTheirDistributions",
		},
		{
			Name: "replay/probabilities-are-those-of-other-draws",
			Edit: Edit{
				File:     "services/replay/columnmessage.go",
				Original: "uint64(s.Key), s.Probability,", Mutated: "uint64(s.Key), 1.0/20,",
			},
			Test: "TestProbabilitiesAreThoseOfTheDraws",
		},
		{
			Name: "replay/longer-items-are-cut-off",
			Edit: Edit{
				File: "services/replay/sampler.go", Func: "Sampler.copyRows",
				Original: "s.options.length > 0 && n > s.options.length", Mutated: "false",
			},
			Test: "TestBatchesOfALengthHaveTheSameShape",
		},
	}
}
