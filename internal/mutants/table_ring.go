package mutants

// ofRing returns the mutants of the ring's room, its liveness checks and its summaries, and of the
// two ways to use it.
func ofRing() []Mutant {
	return []Mutant{
		{
			Name: "ring/batch-overwrites-its-own-rows",
			Edit: Edit{
				File:     "services/replay/ring/writer.go",
				Func:     "allocator.own",
				Original: "len(a.written) == 0 ||",
				Mutated:  "true ||",
			},
			Test: "TestBatchDoesNotOverwriteItsOwnRows",
		},
		{
			Name: "ring/waiting-append-ignores-the-creators-death",
			Edit: Edit{
				File:     "services/replay/ring/poll.go",
				Func:     "poll.next",
				Original: "} else if orphaned {",
				Mutated:  "} else if orphaned && false {",
			},
			Test: "TestWaitingAppendNoticesDeathOfCreator",
		},
		{
			Name: "ring/dead-holders-are-asked-only-where-there-is-no-room",
			Edit: Edit{
				File:     "services/replay/ring/writer.go",
				Func:     "allocator.survey",
				Original: "r.sweep()",
				Mutated:  "_ = r.sweep",
			},
			Test: "TestDeadHoldersAreaIsReclaimedThoughThereIsRoom",
		},
		{
			Name: "ring/unowned-areas-look-alive-to-readers",
			Edit: Edit{
				File:     "services/replay/ring/participant.go",
				Func:     "Ring.alive",
				Original: "index == noParticipant",
				Mutated:  "index == noParticipant && r.self != noParticipant",
			},
			Test: "TestReaderDoesNotCountUnownedAreas",
		},
		{
			Name: "ring/blocks-of-the-current-round-are-skipped",
			Edit: Edit{
				File:     "services/replay/ring/block.go",
				Func:     "Ring.newest",
				Original: "Load() < round",
				Mutated:  "Load() <= round",
			},
			Test: "TestNewestOfManyBlocksMatchesList", Args: []string{shrinkBriefly},
		},
		{
			Name: "ring/older-rows-are-taken-from-the-first-block",
			Edit: Edit{
				File:     "services/replay/ring/block.go",
				Func:     "Ring.olderThan",
				Original: "older[n-1] >= c.below",
				Mutated:  "true",
			},
			Test: "TestNewestOfManyBlocksMatchesList", Args: []string{shrinkBriefly, manyChecks}, Timeout: limit,
		},
		{
			Name: "ring/sampling-prefers-rows-of-sparse-blocks",
			Edit: Edit{
				File:     "services/replay/ring/block.go",
				Func:     "census.find",
				Original: "x -= c[block-1]",
				Mutated:  "x = 0",
			},
			Test: "TestSamplingFewRowsOfManyBlocksIsUniform",
		},
		{
			Name: "replay/remote-client-never-maps-the-ring-again",
			Edit: Edit{
				File:     "services/replay/client.go",
				Func:     "Client.lastSeen",
				Original: "time.Since(c.described) >= remapInterval",
				Mutated:  "false",
			},
			Test: "TestClientMapsRingOnceThatIsPossible",
		},
		{
			Name: "replay/remote-newest-rows-end-with-the-first-message",
			Edit: Edit{
				File:     "services/replay/heads.go",
				Func:     "ReadHead.fetchNewest",
				Original: "part.Rows() < wanted || before == 0",
				Mutated:  "true",
			},
			Test: "TestReadsAreNotBoundedInBytes",
		},
	}
}

// ofReplayCalls returns the mutants of what all calls have in common, and of readers that writers
// overtake.
func ofReplayCalls() []Mutant {
	return []Mutant{
		{
			Name: "replay/closed-node-looks-like-a-closed-client",
			Edit: Edit{
				File:     "services/replay/node.go",
				Func:     "connectError",
				Original: "case errors.Is(err, ring.ErrEnded), errors.Is(err, ring.ErrClosed):",
				Mutated:  "case errors.Is(err, ring.ErrEnded):",
			},
			Test: "TestAllCallsAfterTheNodeEnded",
		},
		{
			Name: "replay/deadlines-that-pass-at-the-node-hide-the-holders",
			Edit: Edit{
				File:     "services/replay/heads.go",
				Func:     "endedBy",
				Original: "connect.CodeOf(err) == connect.CodeDeadlineExceeded",
				Mutated:  "connect.CodeOf(err) == connect.CodeUnknown",
			},
			Test: "TestAppendNamesHoldersIfItsDeadlinePassesAtTheNode",
		},
		{
			Name: "replay/remote-refusals-lose-their-holders",
			Edit: Edit{
				File:     "services/replay/message.go",
				Func:     "ringError",
				Original: `return fmt.Errorf("%w (%w)", noRoomOf(m), remote)`,
				Mutated:  "return remote",
			},
			Test: "TestRefusedWriteLeavesNoSequenceNumbers",
		},
		{
			Name: "replay/failed-writes-keep-earlier-sequence-numbers",
			Edit: Edit{
				File:     "services/replay/heads.go",
				Func:     "WriteHead.write",
				Original: "batch.SetSequences(nil)",
				Mutated:  "_ = batch.SetSequences",
			},
			Test: "TestAllCallsOfEndedContexts",
		},
		{
			Name: "ring/newest-of-an-overtaken-reader-are-none",
			Edit: Edit{
				File:     "services/replay/ring/reader.go",
				Func:     "ReadHead.NewestBefore",
				Original: "copied == found && !overtaken",
				Mutated:  "copied == found && (!overtaken || true)",
			},
			Test: "TestReadersOvertakenByWritersAreNotEmpty", Prints: `the ring has no readable row`,
		},
		{
			Name: "ring/area-of-an-overtaken-reader-is-empty",
			Edit: Edit{
				File:     "services/replay/ring/area.go",
				Func:     "Area.tryHold",
				Original: "r.filledRows() > 0",
				Mutated:  "false && r.filledRows() > 0",
			},
			Test: "TestReadersOvertakenByWritersAreNotEmpty", Prints: `the ring has no readable row`,
		},
	}
}
