package mutants

// processes is the directory of the tests of the parameter server with several processes.
const processes = "internal/parametertest"

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
				File: "services/ps/hosting.go", Func: "claimCopy",
				Original: "rundir.AcquireLock(ctx, path)", Mutated: "rundir.TryLock(path)",
			},
			Package: processes, Test: "TestSecondProcessTakesOver", Prints: `has not taken over|does not know the next officer`,
		},
		{
			Name: "ps/files-go-with-the-process-that-hosts-them",
			Edit: Edit{
				File: "services/ps/hosting.go", Func: "claim.release",
				Original: "o.close(remove && isAlone(c.others))", Mutated: "o.close(remove)",
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
