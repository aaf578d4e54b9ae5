package mutants

import (
	"slices"
	"time"
)

// All returns the table of mutants. A mutant belongs here if it is the fault that a test was
// written for; most are one condition that is left out.
func All() []Mutant {
	return slices.Concat(
		ofBrain(), ofTools(), ofNodes(), ofMemory(), ofProcesses(), ofTunnel(), ofServices(), ofDistribution(),
		ofReplay(), ofStore(), ofParameters(), ofOfficers(), ofSoak(), ofSoakNodes(),
		ofSafetensorsHeaders(), ofSafetensors(), ofSaving(), ofSavedFiles(), ofTensors(),
	)
}

// Arguments of tests.
const (
	// failFast ends a test that is repeated because its failure is a matter of chance.
	failFast = "-test.failfast"
	// For rapid: the first failure is enough, but it must be found.
	noFailFile    = "-rapid.nofailfile"
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
			Args:   []string{noFailFile, shrinkBriefly, manyChecks},
		},
	}
}

// ofNodes returns the mutants of nodes: mailboxes and messages.
func ofNodes() []Mutant {
	return []Mutant{
		{
			Name: "mailbox/turn-is-suspended-after-its-work",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.suspend",
				Original: "t.over",
				Mutated:  "false",
			},
			Test:   "TestMailboxAgreesWithItsModel",
			Prints: `suspends a turn that it no longer has`,
			Args:   []string{noFailFile, shrinkBriefly, manyChecks},
		},
		{
			Name: "mailbox/turn-is-suspended-after-its-work-audited",
			Edit: Edit{
				File:     "runtime/internal/mailbox/turn.go",
				Func:     "Mailbox.suspend",
				Original: "t.over",
				Mutated:  "false",
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
			Test: "TestMailboxAgreesWithItsModel", Args: []string{noFailFile, shrinkBriefly, manyChecks},
		},
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
			Test:    "TestParameterServerIsConfigured", Prints: `Should be false`,
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
			Name: "rundir/sweep-ignores-locks",
			Edit: Edit{
				File: "runtime/rundir/dirlock.go", Func: "sweepOne",
				Original: "case errors.Is(err, ErrLocked), errors.Is(err, errNoLocks): return nil",
				Mutated:  "case errors.Is(err, ErrLocked), errors.Is(err, errNoLocks): return remove(path)",
			},
			Test:   "TestSweepsRemoveDeadHostsOnly",
			Prints: `the directory of a living host is gone`,
			Args:   []string{noFailFile, shrinkBriefly, manyChecks},
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
func ofTunnel() []Mutant {
	return []Mutant{
		{
			Name: "tunnel/requests-overtake",
			Edit: Edit{
				File:     "runtime/tunnel/call.go",
				Func:     "Conn.sendCall",
				Original: "body == nil && len(o.requests) > 0",
				Mutated:  "false",
			},
			Test: "TestRandomRuns", Prints: `served`, Args: []string{noFailFile, shrinkBriefly, manyChecks},
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
			Args:   []string{noFailFile, shrinkBriefly, manyChecks},
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

// ofDistribution returns the mutants of captain, officers and clients in one process.
func ofDistribution() []Mutant {
	return []Mutant{
		{
			Name: "ps/version-is-announced-before-home-has-it",
			Edit: Edit{
				File: "services/ps/captain.go", Func: "captain.publish",
				Original: "v.Id, v.Checksum, v.Pushed = id, sum, timestamppb.Now()",
				Mutated:  "v.Id, v.Checksum, v.Pushed = id, sum, timestamppb.Now()\nc.accept(v)\n",
			},
			Test: "TestFailedPublicationIsSeenNowhere",
		},
		{
			Name: "ps/stalled-source-is-waited-for",
			Edit: Edit{
				File: "services/ps/fetch.go", Func: "fillFrom",
				Original: "cancel(stalled)",
				Mutated:  "_ = stalled",
			},
			Test: "TestStalledOfficerIsBypassed",
		},
		{
			Name: "ps/overtaken-version-is-fetched",
			Edit: Edit{
				File: "services/ps/officer.go", Func: "officer.reach",
				Original: "wanted[content] == nil",
				Mutated:  "wanted[content] == nil && false",
			},
			Test: "TestOvertakenVersionsAreSkipped",
			Args: []string{"-test.timeout=60s"},
		},
		{
			Name: "ps/uploads-are-passed-on-when-complete",
			Edit: Edit{
				File: "services/ps/captain.go", Func: "captain.Upload",
				Original: "c.setComing(v, true)",
				Mutated:  "",
			},
			Test: "TestUploadIsPassedOnAsItArrives",
		},
		{
			Name: "ps/wait-for-all-returns-at-once",
			Edit: Edit{
				File: "services/ps/captain.go", Func: "captain.lacking",
				Original: "s.has[v.GetTag()] < v.GetId()",
				Mutated:  "false",
			},
			Test: "TestWaitForAll",
		},
		{
			Name: "ps/repeated-push-becomes-a-second-version",
			Edit: Edit{
				File: "services/ps/captain.go", Func: "captain.pushedBefore",
				Original: `content != "" && v.GetContent() == content`,
				Mutated:  "v.GetContent() == content && false",
			},
			Test: "TestRepeatedPushBecomesOneVersion",
		},
		{
			Name: "ps/skipped-deletion-is-not-shown",
			Edit: Edit{
				File: "services/ps/officer.go", Func: "officer.reach",
				Original: "o.store.Newest(tag) != nil || o.store.Last(tag) < state.GetLast()",
				Mutated:  "o.store.Newest(tag) != nil",
			},
			Test: "TestDeletionIsSeenByOfficersThatSkippedTheVersion",
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
				Func:     "ReadHead.copyRow",
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
				Original: "return r.counter(counterActive).Load()",
				Mutated:  "return 0",
			},
			Test:   "TestConcurrentProcessesReadNoTornRow",
			Prints: `torn rows`,
			Args:   []string{failFast, "-test.count=50"},
		},
	}
}

// processes is the directory of the tests of the parameter server with several processes.
const processes = "internal/parametertest"

// ofParameters returns the mutants of the captain and of pushes that take several processes.
func ofParameters() []Mutant {
	return []Mutant{
		{
			Name: "ps/captain-begins-anew",
			Edit: Edit{
				File: "services/ps/captain.go", Func: "newCaptain",
				Original: "range home.store.Versions()", Mutated: "range home.store.Versions()[:0]",
			},
			Package: processes, Test: "TestAcknowledgedVersionSurvivesTheCaptain/the_captain's_machine_alone",
			Prints: `the captain has lost an acknowledged version`,
		},
		{
			Name: "ps/push-is-acknowledged-before-home-has-it",
			Edit: Edit{
				File: "services/ps/captain.go", Func: "captain.publish",
				Original: "published, err := c.home.store.Publish(d, v)",
				Mutated: "published, err := true, error(nil); " +
					"time.AfterFunc(200*time.Millisecond, func() { _, _ = c.home.store.Publish(d, v) })",
			},
			Package: processes, Test: "TestAcknowledgedVersionSurvivesTheCaptain/the_captain's_machine_alone",
			Prints: `the captain has lost an acknowledged version`,
		},
		{
			Name: "ps/client-shows-an-older-version-than-it-pushed",
			Edit: Edit{
				File: "services/ps/pull.go", Func: "Client.Pull",
				Original: "p.id >= v.floor.Load()", Mutated: "true",
			},
			Package: processes, Test: "TestPusherReadsItsOwnWriteFromAnotherMachine",
		},
		{
			Name: "ps/fetch-waits-for-a-source-that-has-stalled",
			Edit: Edit{
				File: "services/ps/fetch.go", Func: "fillFrom",
				Original: "cancel(stalled)", Mutated: "_ = stalled",
			},
			Package: processes, Test: "TestBroadcastGoesOnWithoutDeadAndStoppedMachines",
			Prints: `machines are held up|a push is held up`, Args: []string{failFast, "-test.count=6"},
		},
		{
			Name: "ps/draft-of-a-dead-pusher-is-kept",
			Edit: Edit{
				File: "services/ps/officer.go", Func: "officer.Lend",
				Original: "return errors.Join(err, d.Discard())", Mutated: "return err",
			},
			Package: processes, Test: "TestDraftOfKilledPusherIsReclaimed/home", Prints: `a dead pusher's draft is left`,
		},
	}
}

// ofOfficers returns the mutants of officers and followers that take several processes.
func ofOfficers() []Mutant {
	return []Mutant{
		{
			Name: "ps/no-process-takes-over",
			Edit: Edit{
				File: "services/ps/hosting.go", Func: "hosting.run",
				Original: "rundir.AcquireLock(ctx, path)", Mutated: "rundir.TryLock(path)",
			},
			Package: processes, Test: "TestSecondProcessTakesOver", Prints: `has not taken over|does not know the next officer`,
		},
		{
			Name: "ps/files-go-with-the-process-that-hosts-them",
			Edit: Edit{
				File: "services/ps/hosting.go", Func: "hosting.run",
				Original: "o.close(isAlone(others))", Mutated: "o.close(true)",
			},
			// The reader takes the removal for what it is.
			Also: []Edit{{
				File: "services/ps/store/reader.go", Func: "Reader.State",
				Original: "state.ID, state.Last, state.Announced = 0, 0, 0", Mutated: "state.ID = 0",
			}},
			Package: processes, Test: "TestSecondProcessTakesOver", Args: []string{failFast, "-test.count=5"},
		},
		{
			Name: "ps/officer-is-created-for-one-incarnation-only",
			Edit: Edit{
				File: "services/ps/hosting.go", Func: "hosting.run",
				Original: "pause.Wait(ctx) != nil", Mutated: "pause.Wait(ctx) != nil || true",
			},
			Package: processes, Test: "TestAcknowledgedVersionSurvivesTheCaptain/the_captain's_files_lost",
			Prints: `an id was given twice`,
		},
		{
			Name: "ps/captain-without-files-does-not-wait-for-officers",
			Edit: Edit{
				File: "services/ps/ps.go", Func: "Type",
				Original: "self.Ref().NodeRef().GetIncarnation() > 1", Mutated: "false",
			},
			Package: processes, Test: "TestAcknowledgedVersionSurvivesTheCaptain/the_captain's_files_lost",
			Prints: `an id was given twice`,
		},
		{
			Name: "ps/last-id-of-a-deleted-tag-is-forgotten",
			Edit: Edit{
				File: "services/ps/session.go", Func: "captain.restoreDeleted",
				Original: "withCode(c.home.store.Delete(tag, last))", Mutated: "nil",
			},
			Package: "services/ps", Test: "TestLastIDOfDeletedTagIsKept",
		},
		{
			Name: "ps/push-does-not-wait-for-the-captain",
			Edit: Edit{
				File: "services/ps/push.go", Func: "Client.push",
				Original: "!isAway(err)", Mutated: "true",
			},
			Package: processes, Test: "TestReadersGoOnWhileTheCaptainIsAway/dead", Prints: `a push waits for the captain`,
		},
		{
			Name: "ps/follower-waits-for-a-captain-that-has-ended",
			Edit: Edit{
				File: "services/ps/client.go", Func: "Client.watchCaptain",
				Original: "!c.captain.Ref().Record().GetRestarts()", Mutated: "false",
			},
			Package: processes, Test: "TestFollowerOfEndedCaptainFails", Prints: `does not notice that its captain has ended`,
		},
		{
			Name: "ps/streams-without-an-end-delay-the-end-of-their-node",
			Edit: Edit{
				File: "runtime/stop.go", Func: "Node.beginStop",
				Original: "close(n.beginsStop)", Mutated: "_ = n.beginsStop",
			},
			Package: ".", Test: "TestOpenStreamsDoNotDelayTheEndOfTheirNode",
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
			Test: "TestContentRoundTrips", Prints: `aligned to its elements`, Args: []string{noFailFile, shrinkBriefly, manyChecks},
		},
		{
			Name: "safetensors/data-are-not-aligned",
			Edit: Edit{File: tensors + "layout.go", Func: "Layout", Original: "len(header)%dataAlignment != 0", Mutated: "false"},
			Test: "TestContentRoundTrips", Prints: `aligned to cache lines`, Args: []string{noFailFile, shrinkBriefly, manyChecks},
		},
		{
			Name: "safetensors/quotes-are-not-escaped",
			Edit: Edit{File: tensors + "layout.go", Func: "appendString", Original: `c == '"' || c == '\\'`, Mutated: "false"},
			Test: "TestContentRoundTrips", Args: []string{noFailFile, shrinkBriefly, manyChecks},
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
			Test: "TestTagsNeverShareALocation", Prints: `hidden names`, Args: []string{noFailFile, shrinkBriefly, manyChecks},
		},
		{
			Name: "archive/case-is-lost",
			Edit: Edit{File: files + "location.go", Func: "escape", Original: `"!" + string(`, Mutated: `"" + string(`},
			Test: "TestTagsNeverShareALocation", Args: []string{noFailFile, shrinkBriefly, manyChecks},
		},
		{
			Name: "archive/folder-may-be-a-file",
			Edit: Edit{File: files + "location.go", Func: "locate", Original: "*last = escapeSuffix(*last)", Mutated: "_ = last"},
			Test: "TestTagsNeverShareALocation", Prints: `could be a file`, Args: []string{noFailFile, shrinkBriefly, manyChecks},
		},
		{
			Name: "archive/names-are-too-long",
			Edit: Edit{File: files + "location.go", Func: "appendNames", Original: "name.Len()+len(escaped) > maxName", Mutated: "false"},
			Test: "TestTagsNeverShareALocation", Args: []string{noFailFile, shrinkBriefly, manyChecks},
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
