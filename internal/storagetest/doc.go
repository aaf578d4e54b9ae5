// Package storagetest has the tests of the storage with real processes: a Brain with its supervised
// storage-0, and processes that join and write, read and watch. The tests kill, stop and continue
// them, fill the disk and damage the data.
//
// Everything that the processes were answered and have seen is recorded, and checked against the
// changes that watchers have seen: see record.check.
//
// `make test` kills the storage a few times; `go test ./internal/storagetest -kills=50` does it
// fifty times.
package storagetest
