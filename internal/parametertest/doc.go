// Package parametertest has the tests of the parameter server with real processes: a Brain with its
// supervised captain, and processes that join as machines of their own. The tests kill, stop and
// continue them.
//
// `make test` kills the captain a few times; `go test ./internal/parametertest -kills=50` does it
// fifty times.
package parametertest
