package mutants

import "slices"

// ofDrawStreams returns the mutants of streams of samples.
func ofDrawStreams() []Mutant { return slices.Concat(ofDrawingNodes(), ofStreamedSamplers()) }

func ofDrawingNodes() []Mutant {
	const node = "services/replay/streamdraws.go"
	return []Mutant{
		{
			Name: "replay/streams-of-samples-forget-what-was-wanted",
			Edit: Edit{File: node, Func: "drawing.want", Original: "req.GetBatches() < d.batches", Mutated: "false"},
			Test: "TestInvalidRequestsOfSamplersAreRefused",
		},
		{
			Name: "replay/samplers-may-be-done-with-what-was-not-sent",
			Edit: Edit{File: node, Func: "drawing.want", Original: "req.GetDone() > d.sent", Mutated: "false"},
			Test: "TestInvalidRequestsOfSamplersAreRefused",
		},
		{
			Name: "replay/streams-have-batches-of-nothing",
			Edit: Edit{File: node, Func: "drawing.check", Original: "items < 1 || items > maxSampledItems", Mutated: "items > maxSampledItems"},
			Test: "TestInvalidRequestsOfSamplersAreRefused",
		},
		{
			Name: "replay/streamed-items-have-lost-rows",
			Edit: Edit{File: node, Func: "drawing.sendPart", Original: "len(lost) > 0", Mutated: "len(lost) < 0"},
			Test: "TestStreamedItemsWithLostRowsAreReplaced",
		},
		{
			Name: "replay/replaced-items-of-streams-count-for-the-limiter",
			Edit: Edit{File: node, Func: "node.giveBack", Original: "t.Return(items)", Mutated: "_ = t"},
			Test: "TestStreamedItemsWithLostRowsAreReplaced",
		},
		{
			Name: "replay/buffers-of-batches-in-use-are-written",
			Edit: Edit{
				File: node, Func: "drawing.sending",
				Original: "d.used = append(d.used, usedBuffer{d.sent, data})", Mutated: "d.spare = append(d.spare, data)",
			},
			Test: "TestLostStreamsOfSamplesGoOn",
		},
		{
			Name: "replay/long-items-with-lost-rows-are-not-dropped",
			Edit: Edit{File: node, Func: "drawing.sendLong", Original: "Dropped: items == nil", Mutated: "Dropped: false"},
			Test: "TestLongItemsWithLostRowsAreDropped",
		},
		{
			Name: "replay/streams-of-a-node-that-ends-go-on",
			Edit: Edit{File: node, Func: "draws.close", Original: "end(cause)", Mutated: "_ = end"},
			Test: "TestNodeEndsStreamsOfSamples",
		},
		{
			Name: "replay/batches-before-an-error-are-not-sent",
			Edit: Edit{File: node, Func: "drawing.run", Original: "return d.serve(ctx)", Mutated: "err := d.serve(ctx); end(err); return err"},
			Test: "TestBatchesAreMadeWhileOneIsSent/error",
		},
		{
			Name: "replay/batches-are-sent-after-the-end",
			Edit: Edit{File: node, Func: "drawing.sendAll", Original: "ctx.Err() != nil", Mutated: "false"},
			Test: "TestBatchesAreMadeWhileOneIsSent/ended",
		},
		{
			Name: "replay/batches-are-not-made-while-one-is-sent",
			Edit: Edit{File: node, Func: "node.Draw", Original: "DrawResponse, madeAhead)", Mutated: "DrawResponse)"},
			Test: "TestBatchesAreMadeWhileOneIsSent",
		},
		{
			Name: "replay/data-of-batches-is-not-aligned",
			Edit: Edit{File: node, Func: "pad", Original: "begin%8 != 0", Mutated: "false"},
			Test: "TestRowsBeginAtAMultipleOf8Bytes",
		},
	}
}

func ofStreamedSamplers() []Mutant {
	const (
		sampler = "services/replay/streamsampler.go"
		// outOfRange is printed where a mutant panics.
		outOfRange = "slice bounds out of range"
	)
	return []Mutant{
		{
			Name: "replay/samplers-draw-more-ahead",
			Edit: Edit{
				File: sampler, Func: "sampleStream.want",
				Original: "max(st.sampler.options.prefetch, least)", Mutated: "1 + max(st.sampler.options.prefetch, least)",
			},
			Test: "TestStreamsDrawAsManyBatchesAheadAsTheyShould",
		},
		{
			Name: "replay/samplers-wait-for-streams-that-cannot-be",
			Edit: Edit{
				File: sampler, Func: "withoutStreams",
				Original: "code == connect.CodeUnimplemented || code == connect.CodeUnknown", Mutated: "code == connect.CodeUnimplemented",
			},
			Test: "TestSamplersWithoutStreamsMakeCalls",
		},
		{
			Name: "replay/samplers-end-with-the-ring-before",
			Edit: Edit{File: sampler, Func: "Sampler.nextStreamed", Original: "again && errors.Is", Mutated: "!again && errors.Is"},
			Test: "TestStreamedSamplerGoesOnWithTheRestartedReplay",
		},
		{
			Name: "replay/batches-of-streams-have-any-number",
			Edit: Edit{File: sampler, Func: "sampleStream.handle", Original: "res.GetBatch() != received || received >= batches", Mutated: "false"},
			Test: "TestHostileResponsesAreRefused",
		},
		{
			Name: "replay/batches-of-streams-have-more-items",
			Edit: Edit{File: sampler, Func: "gathering.announce", Original: "n > left", Mutated: "false"},
			Test: "TestHostileResponsesAreRefused", Prints: outOfRange,
		},
		{
			Name: "replay/several-items-have-fewer-rows",
			Edit: Edit{File: sampler, Func: "gathering.announce", Original: "n > 1 && uint64(g.missing) > has", Mutated: "false"},
			Test: "TestHostileResponsesAreRefused",
		},
		{
			Name: "replay/streamed-rows-have-any-size",
			Edit: Edit{File: sampler, Func: "gathering.addRows", Original: "len(data) != g.shape.bytes(int(n))", Mutated: "false"},
			Test: "TestHostileResponsesAreRefused", Prints: outOfRange,
		},
		{
			Name: "replay/anything-is-dropped",
			Edit: Edit{File: sampler, Func: "gathering.drop", Original: "g.missing == 0", Mutated: "false"},
			Test: "TestHostileResponsesAreRefused", Prints: outOfRange,
		},
		{
			Name: "replay/runs-of-streamed-items-overlap",
			Edit: Edit{File: "services/replay/columnmessage.go", Func: "rowsOfRuns", Original: "first < next", Mutated: "next == 1"},
			Test: "TestHostileResponsesAreRefused",
		},
		{
			Name: "replay/messages-of-small-rows-are-large",
			Edit: Edit{File: "services/replay/heads.go", Func: "rowsPerChunk", Original: "layout.RowBytes()+numberBytes", Mutated: "layout.RowBytes()"},
			Test: "TestMessagesOfSmallRowsAreBounded",
		},
		{
			Name:   "replay/batches-of-different-lengths-share-memory",
			Edit:   Edit{File: sampler, Func: "gathering.shared", Original: "slices.Min(g.lengths) == length", Mutated: "true"},
			Test:   "TestSamplesHaveTheRowsOfTheirItems",
			Prints: outOfRange,
		},
		{
			Name: "tunnel/buffers-of-aliased-messages-are-used-again",
			Edit: Edit{File: "runtime/tunnel/inbox.go", Func: "packet.decode", Original: "!aliased", Mutated: "true"},
			Test: "TestReceivedMessagesOfStreamsStay",
		},
	}
}
