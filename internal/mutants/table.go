package mutants

import (
	"slices"
	"time"
)

// All returns the table of mutants. A mutant belongs here if it is the fault that a test was
// written for; most are one condition that is left out.
func All() []Mutant {
	return slices.Concat(
		ofBrain(), ofTools(), ofMailboxes(), ofTurns(), ofHeldAnswers(), ofOutlivedTurns(),
		ofNodes(), ofMemory(), ofProcesses(), ofTunnel(), ofServices(), ofDistribution(),
		ofReplay(), ofRing(), ofItems(), ofInspection(), ofTypedRows(), ofReservedRows(),
		ofStore(), ofKilledStorages(), ofKilledReplays(), ofKilledFiles(), ofAges(), ofReplayOrder(), ofParameters(), ofOfficers(), ofSoak(), ofSoakNodes(),
		ofReplayCalls(), ofStorageLog(), ofStorageIDs(),
		ofSafetensorsHeaders(), ofSafetensors(), ofSaving(), ofSavedFiles(), ofTensors(),
		ofStorageClient(), ofStorageNode(), ofStorageReads(), ofStorageTable(),
		ofRows(), ofRowSchemas(), ofTables(), ofLimiters(), ofWaits(), ofLife(), ofChanges(), ofDraws(), ofDrawStreams(), ofSecured(), ofPublicTables(),
		ofFeeds(), ofGateway(), ofEngine(), ofKeepers(), ofCheckpointFiles(), ofCheckpointing(), ofRestoring(),
		ofPlacement(), ofPlaces(), ofRecords(), ofMachines(), ofPrograms(), ofTestMachines(), ofPKI(), ofAdmission(),
		ofSources(), ofHostsOfMachines(), ofSlurm(), ofRay(),
	)
}

// Arguments of tests.
const (
	// failFast ends a test that is repeated because its failure is a matter of chance.
	failFast = "-test.failfast"
	// For rapid: the first failure is enough, but it must be found.
	shrinkBriefly = "-rapid.shrinktime=100ms"
	manyChecks    = "-rapid.checks=10000"
)

// Arguments and the timeout of the soak test.
const (
	brief = "-soak.brief"
	limit = 4 * time.Minute
)

// ofBrain returns the mutants of Brain and its helpers.
func ofBrain() []Mutant {
	return []Mutant{
		{
			Name: "brain/commits-are-not-synced",
			Edit: Edit{
				File:     "brain/internal/store/sync.go",
				Original: "return pebble.Sync",
				Mutated:  "return pebble.NoSync",
			},
			Package: "brain",
			Test:    "TestAcknowledgedRegistrationsSurviveKill",
			Prints:  `acknowledged registrations are lost`,
			Args:    []string{failFast, "-test.count=10"},
		},
		{
			Name: "lease/watcher-ignores-its-own-absence",
			Edit: Edit{
				File:     "brain/internal/lease/lease.go",
				Func:     "Watch.sweep",
				Original: "gap > w.tick+absence(w.opts.Grace)",
				Mutated:  "false",
			},
			Test: "TestNoHostDiesForTheWatchersOwnAbsence", Prints: `Should be empty`,
		},
		{
			Name: "lease/short-absence-counts-as-a-long-one",
			Edit: Edit{
				File:     "brain/internal/lease/lease.go",
				Func:     "Watch.sweep",
				Original: "min(2*gap, w.opts.Lease+w.opts.Reattach)",
				Mutated:  "w.opts.Lease+w.opts.Reattach",
			},
			Test: "TestDeathAfterAShortAbsenceIsDetectedSoon",
		},

		{
			Name: "backoff/pauses-are-not-jittered",
			Edit: Edit{
				File:     "internal/backoff/backoff.go",
				Func:     "Backoff.Next",
				Original: "rand.N(half+1)",
				Mutated:  "0*rand.N(half+1)",
			},
			Test: "TestPausesAreJittered",
		},
	}
}

// ofTools returns the mutants of the generator.
func ofTools() []Mutant {
	return []Mutant{
		{
			Name: "generator/names-do-not-yield",
			Edit: Edit{
				File:     "cmd/protoc-gen-raylink/generator/names.go",
				Func:     "take",
				Original: "for taken[name]",
				Mutated:  "for false",
			},
			Test:   "TestNamesNeverMeet",
			Prints: `is declared twice in`,
			Args:   []string{shrinkBriefly, manyChecks},
		},
	}
}

// disagrees is printed by a test of rapid that has found a script with another outcome than the
// model's. Which one is a matter of chance.
const disagrees = `\[rapid\] (failed|panic|flaky)`

// manyScripts are arguments for such a test that let it find rare scripts.
func manyScripts() []string { return []string{shrinkBriefly, "-rapid.checks=20000"} }

// ofMailboxes returns the mutants of mailboxes.
func ofMailboxes() []Mutant {
	return []Mutant{
		{
			Name: "mailbox/turn-is-suspended-after-its-work",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.suspend",
				Original: "t.over || t.gaveBack",
				Mutated:  "t.gaveBack",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/turn-is-suspended-after-its-work-audited",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.suspend",
				Original: "t.over || t.gaveBack",
				Mutated:  "t.gaveBack",
			},
			Test:   "TestTurnSuspendedAfterItsWork",
			Prints: `counts below zero`,
			Tags:   "invariants",
		},
		{
			Name: "mailbox/queued-work-before-resumed-work",
			Edit: Edit{
				File:     "runtime/internal/mailbox/drain.go",
				Func:     "Mailbox.next",
				Original: "e := m.resuming.pop(); e != nil",
				Mutated:  "e := m.resuming.pop(); e != nil && m.queue.len == 0",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
	}
}

// ofTurns returns the mutants of turns that are given back before the end of their work.
func ofTurns() []Mutant {
	return []Mutant{
		{
			Name: "mailbox/turn-is-not-given-back",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.giveBack",
				Original: "return m.next()",
				Mutated:  "return nil",
			},
			Test: "TestTurnGivenBack", Prints: `the queue did not continue`,
		},
		{
			Name: "mailbox/queue-stops-when-a-turn-is-given-back",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Turn.GiveBack",
				Original: "e != nil",
				Mutated:  "false",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/turn-is-given-back-twice",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.giveBack",
				Original: "t.over || t.gaveBack",
				Mutated:  "t.over",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/turn-is-released-after-it-was-given-back",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.end",
				Original: "case t.gaveBack:",
				Mutated:  "case false:",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/turn-that-was-given-back-is-resumed",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.suspend",
				Original: "t.over || t.gaveBack",
				Mutated:  "t.over",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/calls-that-gave-their-turn-back-are-not-bounded",
			Edit: Edit{
				File:     "runtime/internal/mailbox/mailbox.go",
				Func:     "Mailbox.full",
				Original: "backlog += m.turnless",
				Mutated:  "backlog += 0",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/end-does-not-wait-for-calls-that-gave-their-turn-back",
			Edit: Edit{
				File:     "runtime/internal/mailbox/drain.go",
				Func:     "Mailbox.busy",
				Original: "m.turnless+",
				Mutated:  "",
			},
			Test: "TestTurnGivenBack", Prints: `the mailbox ended before its work`,
		},
	}
}

// ofHeldAnswers returns the mutants of answers that are held after their methods have returned.
func ofHeldAnswers() []Mutant {
	// Which of these is printed first depends on the scripts that are drawn.
	const holdsDisagree = `answers are held, the node has|is over: |got|nil pointer|deadlock|all goroutines in bubble are blocked`
	const file = "runtime/hold.go"
	rows := []struct{ name, file, function, original, mutated, test, prints string }{
		{
			"answer-is-not-held", "runtime/serve.go", "job.run",
			"if j.keep() {", "if false {", "TestHoldAnswer", `the answers are not held`,
		},
		{
			"inline-answer-is-not-held", "runtime/serve.go", "Node.runInline",
			"cc.held.Load() != nil", "false", "TestHoldAnswer", `the answers are not held`,
		},
		{
			"inline-call-keeps-the-turn", file, "Node.awaitHold",
			"cc.turn.GiveBack()", "_ = cc.turn", "TestHoldAnswer", `the turn was not passed on`,
		},
		{
			"held-call-does-not-count", file, "job.keep",
			"cc.turn.Outlive()", "_ = cc.turn", "TestHoldAnswer", `expected: 6`,
		},
		{
			"held-call-is-not-finished", file, "job.leave",
			"turn.Finish()", "_ = turn", "TestHoldsAgreeWithTheirModel", holdsDisagree,
		},
		{
			"concurrent-call-leaves-while-it-is-held", "runtime/serve.go", "Node.submitJob",
			"if !kept {", "if !kept || true {", "TestHoldAnswerOfConcurrentMethod", `counts below zero|actual  : \[\]int\{1, 2, 3\}`,
		},
		{
			"canceled-call-stays-in-its-hold", "runtime/serve.go", "Node.withdraw",
			"case j.forsake():", "case false:", "TestHeldCallerEnds", `its answer was held back`,
		},
		{
			"canceled-call-is-held-later", file, "job.holdOn",
			"held == forsaken", "false", "TestHoldAnswerAfterCancel", `panic|nil pointer|before HoldAnswer|after HoldAnswer`,
		},
		{
			"removed-answer-stays-in-the-list", file, "Hold.remove",
			"h.first = a.next", "_ = a.next", "TestHoldsAgreeWithTheirModel", holdsDisagree,
		},
		{
			"further-holds-are-ignored", file, "job.release",
			"case a.also != nil:", "case false:", "TestHoldsAgreeWithTheirModel", holdsDisagree,
		},
		{
			"error-of-the-release-is-lost", file, "job.release",
			"case err != nil:", "case false:", "TestHoldsAgreeWithTheirModel", holdsDisagree,
		},
		{
			"hold-that-was-released-holds", file, "Hold.add",
			"if h.released {", "if false {", "TestHoldsAgreeWithTheirModel", holdsDisagree,
		},
		{
			"panic-is-held", "runtime/serve.go", "Node.run",
			"cc.held.Store(nil)", "_ = cc", "TestEndAfterHoldAnswer", `deadlock|all goroutines in bubble are blocked`,
		},
		{
			"end-of-the-node-does-not-end-held-calls", file, "Node.HoldAnswer",
			"n.endsHeld.Do(func() { context.AfterFunc(n.work, n.endHeld) })", "_ = n.endHeld", "TestStopWithHeldAnswers", `the end waited longer|deadlock`,
		},
		{
			"calls-after-the-end-are-held", file, "job.keep",
			"n.work.Err() != nil", "false && n != nil", "TestStopWithHeldAnswers", `deadlock|blocked`,
		},
		{
			"hostile-error-ends-the-release", file, "releaseFrom",
			"if next != nil {", "if false {", "TestReleaseWithError", `deadlock|blocked`,
		},
	}
	mutants := make([]Mutant, len(rows))
	for i, r := range rows {
		mutants[i] = Mutant{
			Name: "runtime/" + r.name, Edit: Edit{File: r.file, Func: r.function, Original: r.original, Mutated: r.mutated},
			Test: r.test, Prints: r.prints,
		}
	}
	return mutants
}

// ofOutlivedTurns returns the mutants of calls that outlive their turns, and of their ends.
func ofOutlivedTurns() []Mutant {
	const file = "runtime/hold.go"
	return []Mutant{
		{
			Name: "runtime/modified-answer-is-not-detected",
			Edit: Edit{File: file, Func: "job.settle", Original: "j.held.Get().isModified()", Mutated: "false"},
			Test: "TestHeldAnswerIsModified", Tags: "invariants",
		},
		{
			Name:    "runtime/call-of-an-ended-connection-is-held",
			Edit:    Edit{File: file, Func: "job.keep", Original: "j.in.OnEnd()", Mutated: "_ = j.in"},
			Package: ".", Test: "TestContract/tunnel_by_Unix/the_callers_of_held_answers_end", Prints: `did not begin|exhausted|test timed out`,
			Timeout: 15 * time.Second,
		},
		{
			Name: "runtime/deadline-is-noticed-with-the-lock-held",
			Edit: Edit{
				File: "runtime/context.go", Func: "callContext.Err",
				Original: "caller := c.caller.Err()\n\tc.mu.Lock()", Mutated: "c.mu.Lock()\n\tcaller := c.caller.Err()",
			},
			Package: ".", Test: "TestContract/tunnel_by_Unix/a_method_that_waited_polls_the_error_of_its_context",
			// The timer may be the first to notice, so that the test passes now and then.
			Prints: `test timed out`, Timeout: 20 * time.Second, Args: []string{"-test.count=8"},
		},
		{
			Name:    "runtime/node-that-ends-cancels-its-callers",
			Edit:    Edit{File: "runtime/serve.go", Func: "Node.awaitReady", Original: "n.endedBefore(cc.caller)", Mutated: "false"},
			Package: ".", Test: "TestCallsOfANodeThatStopsDuringItsSetUpAreUnavailable", Prints: `canceled: calling`,
		},
		{
			Name: "mailbox/work-that-outlives-its-turn-is-over",
			Edit: Edit{
				File: "runtime/internal/mailbox/turn.go", Func: "Mailbox.end",
				Original: "case t.outlives == willOutlive:", Mutated: "case false:",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/work-is-finished-before-it-returns",
			Edit: Edit{
				File: "runtime/internal/mailbox/turn.go", Func: "Turn.Finish",
				Original: "over := t.outlives == hasReturned", Mutated: "over := true",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
		{
			Name: "mailbox/released-twice-is-finished",
			Edit: Edit{
				File: "runtime/internal/mailbox/turn.go", Func: "Mailbox.end",
				Original: "t.over || t.outlives == hasReturned", Mutated: "t.over",
			},
			Test: "TestMailboxAgreesWithItsModel", Prints: disagrees, Args: manyScripts(),
		},
	}
}

// ofNodes returns the mutants of nodes and their messages.
func ofNodes() []Mutant {
	return []Mutant{
		{
			Name: "runtime/with-copy-makes-no-copies",
			Edit: Edit{File: "runtime/node.go", Func: "Node.passes", Original: "n.copies", Mutated: "false"},
			Test: "TestWithCopy", Prints: `expected: "mine"`,
		},
		{
			Name: "runtime/fingerprints-with-copies",
			Edit: Edit{File: "runtime/node.go", Func: "Node.passes", Original: "n.copies", Mutated: "false"},
			Test: "TestFingerprintsWithCopies", Prints: `changed while it was served`, Tags: "invariants",
		},
		{
			Name: "runtime/fingerprints-are-not-verified",
			Edit: Edit{
				File:     "runtime/fingerprint.go",
				Func:     "hashed.isModified",
				Original: "hashOf(h.msg) != h.hash",
				Mutated:  "false",
			},
			Test: "TestFingerprints", Tags: "invariants",
		},
	}
}

// ofMemory returns the mutants of memory: of HTTP messages, and of recycled buffers.
func ofMemory() []Mutant {
	return []Mutant{
		{
			Name: "runtime/http-messages-are-not-counted",
			Edit: Edit{
				File:     "runtime/bodies.go",
				Func:     "heldBody.reserve",
				Original: "b.mu.Lock() switch {",
				Mutated:  "b.mu.Lock()\nswitch { case true: b.mu.Unlock(); return nil\n",
			},
			Package: ".",
			Test:    "TestHostile/uploads_that_do_not_end",
			Prints:  `is not less than or equal to`,
		},
		{
			Name: "runtime/messages-wait-with-a-buffer-of-connect",
			Edit: Edit{
				File:     "runtime/countedbody.go",
				Func:     "countedStream.Receive",
				Original: "s.call.body != nil",
				Mutated:  "false",
			},
			Package: ".",
			Test:    "TestHostile/responses_that_nothing_reads",
			Prints:  `is not less than or equal to`,
		},
		{
			Name: "runtime/responses-that-wait-are-not-bounded",
			Edit: Edit{
				File:     "runtime/bodies.go",
				Func:     "heldBody.reserve",
				Original: "b.parked > 0 && b.waiting+size > b.parked",
				Mutated:  "false",
			},
			Package: ".",
			Test:    "TestHostile/responses_that_nothing_reads",
			Prints:  `is not less than or equal to`,
		},
		{
			Name: "runtime/http-messages-overtake-those-that-wait",
			Edit: Edit{
				File:     "runtime/bodies.go",
				Func:     "heldBody.reserve",
				Original: "b.queue.Len() == 0 && b.tryLarge(h)",
				Mutated:  "b.tryLarge(h)",
			},
			Test:   "TestBodiesAgreeWithTheirModel",
			Prints: `Not equal`,
		},
		{
			Name: "codec/memory-is-reused-while-it-is-held",
			Edit: Edit{
				File: "runtime/tunnel/internal/codec/recycle.go", Func: "recycler.alloc",
				Original: "runtime.SetFinalizer(first, func(first *byte) { r.give(first, class, size) })",
				Mutated:  "r.give(first, class, size)",
			},
			Test: "TestHeldMemoryIsNotReused",
		},
	}
}

// ofProcesses returns the mutants of processes and directories.
func ofProcesses() []Mutant {
	return []Mutant{
		{
			Name: "cli/damaged-chunks-are-written",
			Edit: Edit{
				File: "cmd/raylink/captain.go", Func: "captain.fetch",
				Original: "crc32.Checksum(chunk.GetData(), castagnoli) != chunk.GetChecksum()", Mutated: "false",
			},
			Test: "TestDamagedParametersAreNotPulled", Prints: `damaged`,
		},
		{
			Name: "cli/checksum-of-the-whole-is-ignored",
			Edit: Edit{File: "cmd/raylink/captain.go", Func: "captain.fetch", Original: "sum == version.GetChecksum()", Mutated: "true"},
			Test: "TestDamagedParametersAreNotPulled", Prints: `another_content`,
		},
		{
			Name: "cli/links-are-replaced",
			Edit: Edit{File: "cmd/raylink/transfer.go", Func: "destination.open", Original: "filepath.EvalSymlinks(d.path)", Mutated: "d.path, error(nil)"},
			Test: "TestPulledFileReplacesWhenComplete", Prints: `before`,
		},
		{
			Name:    "runtime/supervised-node-loses-its-configuration",
			Edit:    Edit{File: "runtime/supervise.go", Func: "supervisor.launch", Original: "s.config", Mutated: "nil"},
			Package: "cmd/raylink",
			Test:    "TestParameterServerIsConfigured", Prints: `Should be false`, Alone: true,
		},
		{
			Name: "launch/any-build-is-accepted",
			Edit: Edit{
				File:     "runtime/launch/conversation.go",
				Func:     "conversation.greet",
				Original: "string(build) != c.build",
				Mutated:  "false",
			},
			Test: "FuzzConversation", Prints: `before it had proven that it is this build`,
		},
		{
			Name: "rundir/lock-is-released-by-closing-it-only",
			Edit: Edit{File: "runtime/rundir/dirlock.go", Func: "unlock", Original: "_ = unix.Flock(fd, unix.LOCK_UN)", Mutated: "_ = unix.LOCK_UN"},
			Test: "TestReleasedLockIsFreeWhileAProcessIsBeingStarted", Prints: `test timed out`, Timeout: 5 * time.Second,
		},
		{
			Name: "rundir/sweep-ignores-locks",
			Edit: Edit{
				File: "runtime/rundir/dirlock.go", Func: "sweepOne",
				Original: "case errors.Is(err, ErrLocked), errors.Is(err, errNoLocks): return nil",
				Mutated:  "case errors.Is(err, ErrLocked), errors.Is(err, errNoLocks): return remove(path)",
			},
			Test:   "TestSweepsRemoveDeadHostsOnly",
			Prints: `the directory of a living host is gone`,
			Args:   []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "rundir/sweep-takes-hidden-directories-at-once",
			Edit: Edit{
				File:     "runtime/rundir/dirlock.go",
				Func:     "sweep",
				Original: "err != nil || time.Since(info.ModTime()) < birthTime",
				Mutated:  "err != nil || time.Since(info.ModTime()) < 0",
			},
			Test: "TestHiddenHostIsSparedForAMinute",
		},
	}
}

// ofTunnel returns the mutants of the tunnel.
func ofTunnel() []Mutant { //nolint:funlen // a table
	return []Mutant{
		{
			Name: "tunnel/requests-overtake",
			Edit: Edit{
				File:     "runtime/tunnel/call.go",
				Func:     "Conn.sendCall",
				Original: "body == nil && len(o.requests) > 0",
				Mutated:  "false",
			},
			Test: "TestRandomRuns", Prints: `served`, Args: []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "tunnel/streams-exceed-their-credit",
			Edit: Edit{
				File:     "runtime/tunnel/outbox.go",
				Func:     "sendQueue.sendable",
				Original: "bounded := q.stream",
				Mutated:  "bounded := false",
			},
			Test:   "TestRandomRuns",
			Prints: `more than the credit`,
			Args:   []string{shrinkBriefly, manyChecks},
		},
		{
			Name: "tunnel/reads-though-nothing-is-written",
			Edit: Edit{
				File:     "runtime/tunnel/read.go",
				Original: "!c.dialled && c.out.full.Load()",
				Mutated:  "false",
			},
			Test:   "TestMemoryHeldForHostileCaller/CALL_that_fails,_unread",
			Prints: `is not less than or equal to`,
		},
		{
			Name: "tunnel/calls-that-cross-a-goaway-fail-otherwise",
			Edit: Edit{
				File:     "runtime/tunnel/read.go",
				Original: "flags&replyNotRun != 0 && c.crossedGoAway(r.err)",
				Mutated:  "false",
			},
			Test:   "TestCallsInFlightAtShutdownAreRefusedAsNotRun",
			Prints: `Target error should be in err chain`,
		},
		{
			Name: "tunnel/wrapped-refusal-counts-as-not-run",
			Edit: Edit{
				File:     "runtime/tunnel/incoming.go",
				Original: "_, refused := failure.(*notRunError); refused",
				Mutated:  "errors.Is(failure, ErrNotRun)",
			},
			Test: "TestOnlyOwnRefusalIsNotRun",
		},
		{
			Name: "tunnel/proofs-do-not-cover-the-handshake",
			Edit: Edit{
				File:     "runtime/tunnel/handshake.go",
				Func:     "computeProof",
				Original: "append([][]byte{[]byte(label)}, parts...)",
				Mutated:  "[][]byte{[]byte(label)}",
			},
			Test: "TestTamperingIsDetected",
		},
		{
			Name: "tunnel/any-proof-is-accepted",
			Edit: Edit{
				File:     "runtime/tunnel/handshake.go",
				Func:     "verifyProof",
				Original: "hmac.Equal(proof, computeProof(token, label, parts...))",
				Mutated:  "len(proof) == proofBytes",
			},
			Test: "TestDifferentTokens",
		},
		{
			Name: "tunnel/requests-exceed-the-window",
			Edit: Edit{
				File:     "runtime/tunnel/sendwindow.go",
				Func:     "sendWindow.fits",
				Original: "s.used+cost <= s.window",
				Mutated:  "true",
			},
			Test: "TestStartBlocksWhileSendWindowIsFull",
		},
		{
			Name: "tunnel/stop-of-this-process-counts-as-silence",
			Edit: Edit{
				File:     "runtime/tunnel/keepalive.go",
				Func:     "keepalive.tick",
				Original: "late && k.silent > 0",
				Mutated:  "false && late",
			},
			Test: "TestPeerIsNotLostWhileThisProcessIsStopped",
		},
		{
			Name: "tunnel/interruption-ends-the-connection",
			Edit: Edit{
				File:     "runtime/tunnel/readowner.go",
				Func:     "readLoop.readError",
				Original: "l.readingFor != nil && isInterruption(err)",
				Mutated:  "l.readingFor != nil && l.fragment.assembly == nil && isInterruption(err)",
			},
			Test: "TestInterruptionInLastFragment",
		},
	}
}

// ofServices returns the mutants of the services.
func ofServices() []Mutant {
	return []Mutant{
		{
			Name: "ps/older-version-replaces-a-newer-one",
			Edit: Edit{
				File:     "services/ps/store/store.go",
				Func:     "tag.late",
				Original: "id <= t.last() && id != word(t.index, lostAt).Load()",
				Mutated:  "false",
			},
			Test: "TestLateVersionNeverReplacesNewerOne",
		},
		{
			Name: "ps/older-version-is-published",
			Edit: Edit{
				File: "services/ps/store/draft.go", Func: "Store.publish",
				Original: "if d.tag.late(version.GetId()) {",
				Mutated:  "if d.tag.late(version.GetId()) {\nword(d.tag.index, newestAt).Store(version.GetId())\n",
			},
			Test:   "TestReadersInOtherProcessesSeeCompleteVersionsInOrder",
			Prints: `torn versions|versions that go back|the newest version is not the last`,
			Args:   []string{failFast, "-test.count=20"},
		},
		{
			Name: "ps/version-is-published-before-it-is-complete",
			Edit: Edit{
				File:     "services/ps/store/draft.go",
				Func:     "Draft.final",
				Original: "!d.complete()",
				Mutated:  "false",
			},
			Test: "TestIncompleteDraftIsNotPublished",
		},
		{
			Name: "ps/id-of-a-lost-version-is-reused",
			Edit: Edit{
				File:     "services/ps/store/takeover.go",
				Func:     "tag.load",
				Original: "max(last, newest, lost)",
				Mutated:  "newest",
			},
			Test: "TestIDOfLostVersionIsNotReused",
		},
	}
}

// ofReplay returns the mutants of the replay.
func ofReplay() []Mutant {
	return []Mutant{
		{
			Name: "ring/rows-are-not-checked-after-the-copy",
			Edit: Edit{
				File:     "services/replay/ring/reader.go",
				Func:     "ReadHead.copyDrawn",
				Original: "after != before",
				Mutated:  "after != before && false",
			},
			Test:   "TestConcurrentProcessesReadNoTornRow",
			Prints: `torn rows`,
			Args:   []string{failFast, "-test.count=50"},
		},
		{
			Name: "ring/writers-ignore-areas",
			Edit: Edit{
				File:     "services/replay/ring/area.go",
				Func:     "Ring.active",
				Original: "return s",
				Mutated:  "return entrySet{}",
			},
			Test:   "TestConcurrentProcessesReadNoTornRow",
			Prints: `torn rows`,
			Args:   []string{failFast, "-test.count=50"},
		},
		{
			Name: "ring/writers-ignore-areas-activated-after-the-allocation",
			Edit: Edit{
				File:     "services/replay/ring/writer.go",
				Func:     "WriteHead.claim",
				Original: "r.epoch() != epoch && r.inArea(sequence%r.head.layout.Capacity)",
				Mutated:  "false && r.inArea(sequence%r.head.layout.Capacity)",
			},
			Test: "TestWriterWithEarlierPositionBacksOutOfArea",
		},
	}
}

// ofSoak returns the mutants of the whole system, which is under stress in the soak test.
func ofSoak() []Mutant {
	const wrongOrder = `call \d+ of caller \w+ ran on \S+ after call \d+`
	return []Mutant{
		{
			Name: "soak/interruption-ends-the-connection",
			Edit: Edit{
				File:     "runtime/tunnel/readowner.go",
				Func:     "readLoop.readError",
				Original: "case l.readingFor != nil",
				Mutated:  "case l.fragment.assembly != nil:\ncase l.readingFor != nil",
			},
			Package: "internal/soak", Test: "TestSoak", Args: []string{brief, "-soak=2m"}, Timeout: limit,
			Prints: `(add|echo|fetch|async|nested|wait|count) failed: unavailable`,
		},
		{
			Name: "soak/requests-overtake",
			Edit: Edit{
				File:     "runtime/tunnel/call.go",
				Func:     "Conn.sendCall",
				Original: "body == nil && len(o.requests) > 0",
				Mutated:  "false",
			},
			Package: "internal/soak",
			Test:    "TestSoak",
			Args:    []string{brief, "-soak=2m"},
			Timeout: limit,
			Prints:  wrongOrder,
		},
		{
			Name: "soak/lost-calls-are-sent-again",
			Edit: Edit{
				File:     "runtime/remote.go",
				Func:     "isNotHere",
				Original: "return ok &&",
				Mutated:  "return isLost(err) || ok &&",
			},
			Package: "internal/soak",
			Test:    "TestSoak",
			Args:    []string{brief, "-soak=2m"},
			Timeout: limit,
			Prints:  wrongOrder,
		},
		{
			Name: "soak/callers-are-not-notified-of-the-end-of-their-context",
			Edit: Edit{
				File:     "runtime/tunnel/sweeper.go",
				Func:     "sweeper.makeCallerWatch",
				Original: "call.signals <- signalWatch",
				Mutated:  "",
			},
			Package: "internal/soak",
			Test:    "TestSoak",
			Args:    []string{brief, "-soak=5s"},
			Timeout: limit,
			Prints:  `returned \S+ after it should have|a call has not returned`,
		},
		{
			Name: "soak/nodes-are-not-notified-of-a-cancellation",
			Edit: Edit{
				File:     "runtime/tunnel/serve.go",
				Func:     "readLoop.onCancel",
				Original: "c := l.conn",
				Mutated:  "c := l.conn\nif id > 0 { return }",
			},
			Package: "internal/soak", Test: "TestSoak", Args: []string{brief, "-soak=5s"}, Timeout: limit,
			Prints: `a method's context did not end with its call`,
		},
	}
}

// ofSoakNodes returns the mutants of the soak test's own nodes, which leave something behind.
func ofSoakNodes() []Mutant {
	const node = "internal/soak/node_test.go"
	return []Mutant{
		{
			Name: "soak/goroutine-is-left",
			Edit: Edit{
				File:     node,
				Func:     "world.setUp",
				Original: "w.ups.Add(1)",
				Mutated:  "w.ups.Add(1); go func() { select {} }()",
			},
			Test:    "TestSoak",
			Args:    []string{brief, "-soak=1s"},
			Timeout: limit,
			Prints:  `found unexpected goroutines`,
		},
		{
			Name: "soak/memory-is-left",
			Edit: Edit{
				File:     node,
				Func:     "node.Echo",
				Original: "return &contractv1.EchoResponse{Payload: req.GetPayload()}, nil",
				Mutated:  "w := make([]byte, 4<<20)\nkept.Store(&w[0], w)\nreturn &contractv1.EchoResponse{Payload: req.GetPayload()}, nil",
			},
			Also: []Edit{
				{File: node, Original: `"sync/atomic"`, Mutated: "\"sync\"\n\"sync/atomic\""},
				{File: node, Original: "const fetchPrefix", Mutated: "var kept sync.Map\nconst fetchPrefix"},
			},
			Test:    "TestSoak",
			Args:    []string{brief, "-soak=5s"},
			Timeout: limit,
			Prints:  `memory is left|the heap has`,
		},
		{
			Name: "soak/file-is-left-open",
			Edit: Edit{
				File:     node,
				Func:     "world.setUp",
				Original: "w.ups.Add(1)",
				Mutated:  `w.ups.Add(1); _, _ = syscall.Open("/dev/null", 0, 0)`,
			},
			Also:    []Edit{{File: node, Original: `"sync/atomic"`, Mutated: "\"sync/atomic\"\n\"syscall\""}},
			Test:    "TestSoak",
			Args:    []string{brief, "-soak=1s"},
			Timeout: limit,
			Prints:  `open files are left`,
		},
		{
			Name: "soak/process-is-left",
			Edit: Edit{
				File:     node,
				Func:     "world.setUp",
				Original: "w.ups.Add(1)",
				Mutated:  "w.ups.Add(1); _ = exec.Command(\"sleep\", \"60\").Start()",
			},
			Also:    []Edit{{File: node, Original: `"sync/atomic"`, Mutated: "\"os/exec\"\n\"sync/atomic\""}},
			Test:    "TestSoak",
			Args:    []string{brief, "-soak=1s"},
			Timeout: limit,
			Prints:  `processes are left`,
		},
	}
}
