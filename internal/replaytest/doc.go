// Package replaytest has the checker of the replay: processes that write rows and items, and
// processes that read, hold and sample them, mapped and through the node. The test kills, stops and
// continues them at random, the replay's own process included.
//
// Each row has a checksum and says which writer wrote it, in which place of its rows, and when. The
// priority of an item says which rows it has. So a reader knows a torn row, one of another
// generation, an item with other rows than its own, and a priority of another item. Writers record
// what was acknowledged in files, which survive their death. While nothing is written, the auditor
// compares them with the replay.
//
// The records also have the time of each call. Where the next node takes over the file of one that
// was killed, they say which items, priorities and deletions must have been kept.
//
// `make test` writes 20,000 rows and `make test-soak` 100,000;
// `go test ./internal/replaytest -rows=10000000 -kills=20 -timeout=0` writes ten million. The
// choices follow from -seed; a failure prints it, and what was done.
package replaytest
