package mutants

import "time"

// ofFeeds returns the mutants of streams of writers, and of updates that share calls.
func ofFeeds() []Mutant { //nolint:funlen // a table
	const (
		node   = "services/replay/streamfeed.go"
		writer = "services/replay/streamwriter.go"
		outbox = "services/replay/outbox.go"
		update = "services/replay/update.go"
	)
	rows := []struct{ name, file, function, original, mutated, test string }{
		{"rows-are-written-out-of-order", node, "feeding.check", "rows.GetFirst() != w.rows", "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{
			"rows-are-written-and-named", node, "feeding.check", "len(rows.GetTogether())+len(rows.GetData()) > 0", "false",
			"TestInvalidMessagesOfWritersChangeNothing",
		},
		{"streams-are-opened-twice", node, "feeding.check", "req.GetOpen() != nil", "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{
			"items-are-inserted-out-of-order", node, "feeding.checkItems", "it.GetNumber() != number", "false",
			"TestInvalidMessagesOfWritersChangeNothing",
		},
		{
			"items-have-rows-beyond-the-last", node, "feeding.checkItems", "length > total-first", "false",
			"TestInvalidMessagesOfWritersChangeNothing",
		},
		{
			"items-have-rows-that-are-not-known", node, "feeding.checkItems", "total-first > known", "false",
			"TestInvalidMessagesOfWritersChangeNothing",
		},
		{"items-have-rows-twice", node, "feeding.checkItems", "first != 0 || length != 0", "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{
			"items-are-not-checked", node, "feeding.checkItems", "t.Check(&item); err != nil", "t.Check(&item); err != nil && false",
			"TestInvalidMessagesOfWritersChangeNothing",
		},
		{"any-number-of-items-waits", node, "feeding.checkItems", "waiting > maxQueuedItems", "false", "TestNodeBoundsWhatItHoldsForAStream"},
		{"any-number-of-confirmations-is-kept", node, "feeding.handle", "unseen > maxUnseen", "false", "TestNodeBoundsWhatItHoldsForAStream"},
		{"streams-begin-without-a-writer", node, "node.checkOpen", `open.GetWriter() == ""`, "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{"streams-of-another-ring", node, "node.checkOpen", "!n.isRing(open.GetRingId())", "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{"any-history-is-kept", node, "node.checkOpen", "open.GetHistory() > capacity", "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{"more-rows-before-than-written", node, "node.checkOpen", "before > open.GetRows()", "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{"unknown-writers-resume", node, "feeds.enter", "w == nil && open.GetResume()", "false", "TestInvalidMessagesOfWritersChangeNothing"},
		{"writers-take-the-place-of-others", node, "feeds.enter", "w != nil && !open.GetResume()", "false", "TestNodeBoundsWhatItHoldsForAStream"},
		{"lost-writers-are-kept", node, "feeds.forget", "lost <= maxLost", "true", "TestNodeForgetsWriters"},
		{
			"confirmations-are-lost-with-their-stream", node, "feeding.begin", "range w.unseen", "range w.unseen[:0]",
			"TestLostConnectionsLoseAndDoubleNothing",
		},
		{"counts-of-items-begin-anew", node, "feeding.received", "f.writer.items[name]", "0", "TestLostConnectionsLoseAndDoubleNothing"},

		{"confirmations-count-twice", writer, "outbox.handle", "serial <= o.seen", "false", "TestResponsesCountOnce"},
		{
			"more-items-are-confirmed-than-sent", writer, "outbox.handle", "q == nil || len(keys) > len(q.items)", "q == nil",
			"TestInvalidResponsesEndTheStream",
		},
		{"streams-open-with-other-rows", writer, "outbox.handle", "opened.GetRows() != o.confirmed", "false", "TestInvalidResponsesEndTheStream"},
		{"rows-written-together-are-divided", writer, "outbox.trim", "k+int(c.together[groups]) > skip", "false", "TestInvalidResponsesEndTheStream"},
		{"more-rows-are-confirmed-than-written", writer, "outbox.confirmRows", "o.next-o.confirmed", "1<<62", "TestInvalidResponsesEndTheStream"},
		{
			"confirmed-rows-are-sent-again", writer, "outbox.handle", "o.trim(); err != nil", "error(nil); err != nil",
			"TestInvalidResponsesEndTheStream",
		},
		{"writers-with-rows-begin-anew", writer, "outbox.open", "o.tail != nil || o.pending()", "false", "TestWritersGoOnAfterManyCuts"},
		{"windows-are-not-looked-at", outbox, "outbox.fits", "used+size <= o.options.window", "true", "TestWindowBoundsWhatIsNotConfirmed"},
		{
			"messages-exceed-the-window", outbox, "outbox.reserve", "max(c.rows+n, (o.options.window-o.bytes)/max(1, o.shape.row))", "c.room",
			"TestWindowBoundsWhatIsNotConfirmed",
		},
		{"items-are-not-bounded", outbox, "outbox.item", "len(q.items) < most", "len(q.items) < most+1<<20", "TestWindowBoundsWhatIsNotConfirmed"},
		{
			"rows-are-sent-while-they-are-filled", outbox, "outbox.takeTail", "o.state.Or(taken)&filling != 0", "false",
			"TestRowsThatAreBeingFilledAreNotSent",
		},
		{"filled-rows-wait-for-the-next-call", outbox, "outbox.release", "o.poke()", "_ = wanted", "TestRowsThatAreBeingFilledAreNotSent"},
		{"writers-do-not-look-at-a-lost-stream", writer, "outbox.run", "o.state.Or(taken)", "_ = taken", "TestNextWriteReportsALostStream"},
		{"rows-of-closed-clients-are-taken", outbox, "outbox.commit", "o.dead != nil", "false", "TestTypedCallsOfClosedClient"},

		{"each-update-is-a-call", update, "updates.update", "!busy", "!busy || true", "TestUpdatesAtTheSameTimeShareCalls"},
		{"parts-do-not-fail-alone", update, "updateParts", "errors.Is(err, ErrPriority)", "false", "TestUpdatesAtTheSameTimeShareCalls"},
		{"failed-parts-are-not-reported", update, "updates.send", "some[failed.GetPart()].err", "_", "TestUpdatesAtTheSameTimeShareCalls"},
		{"parts-share-their-results", update, "updates.send", "some[i].stale", "some[i*0].stale", "TestUpdatesAtTheSameTimeShareCalls"},
		{"parts-have-keys-of-others", update, "updateParts", "keys[n:], priorities[n:]", "keys, priorities", "TestUpdatesAtTheSameTimeShareCalls"},
		{"parts-are-not-counted", update, "updateParts", "total != uint64(len(keys))", "false", "TestPartsOfUpdatesThatDoNotFitAreRefused"},
		{
			"updates-of-any-number-share-a-call", update, "updates.gather", "min(len(waiting), maxUpdatesTogether)", "len(waiting)",
			"TestUpdatesOfACallAreBounded",
		},
		{"keys-of-any-number-share-a-call", update, "updates.gather", "keys > maxKeysTogether", "false", "TestUpdatesOfACallAreBounded"},
		{"one-that-leaves-ends-the-call-of-others", update, "updates.gather", "left == 0", "true", "TestUpdatesThatEndEarly"},
		{"calls-go-on-without-callers", update, "updates.gather", "left == 0", "false", "TestUpdatesThatEndEarly"},
		{"updates-that-have-ended-are-sent", update, "updates.withdraw", "other == p", "other == nil", "TestUpdatesThatEndEarly"},
		{
			"updates-wait-for-closed-clients", update, "updates.next", "context.AfterFunc(closed, cancel)", "func() bool { return true }",
			"TestUpdatesThatShareACallFailTogether",
		},

		{"rows-exceed-a-message", "services/replay/node.go", "", "63 << 20", "64 << 20", "TestRowsOfTheMaximumSize"},
	}
	mutants := make([]Mutant, 0, len(rows)+1)
	for _, r := range rows {
		mutants = append(mutants, Mutant{
			Name: "replay/feed-" + r.name, Test: r.test,
			Edit: Edit{File: r.file, Func: r.function, Original: r.original, Mutated: r.mutated},
		})
	}
	return append(mutants, Mutant{
		Name: "replay/feed-streams-that-were-replaced-go-on",
		Edit: Edit{File: node, Func: "feeds.enter", Original: "w.end(errReplaced)", Mutated: "_ = errReplaced"},
		Test: "TestNewStreamReplacesTheOneBefore", Prints: `test timed out`, Timeout: 15 * time.Second,
	})
}
