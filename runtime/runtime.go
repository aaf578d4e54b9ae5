// Package runtime hosts nodes and calls them.
//
// Users meet it in three places. A node's set-up function receives a [Node], with which the node
// reads its own identity, creates children, runs tasks and publishes attributes. A handle's Ref is
// a [Ref], which identifies a node and carries the operations that every node has. An asynchronous
// call returns a [Future]. The front doors (packages raylink and join) make the [Host] that all of
// them belong to. Names that begin with Generated, and the version constants, are for generated
// code alone.
//
// What it promises:
//
//   - A node's methods take turns, in the order in which each caller made its calls (mailbox);
//     concurrent methods and streams run without a turn. docs/turns.md has the rules.
//   - A call behaves the same whether it stays in the process, goes through a tunnel or comes in
//     over HTTP. internal/contract is the test of that.
//   - When a node ends, its callers get an error that says how, and nothing of it is left: no
//     process, goroutine, socket or file.
//   - Everything that may block is bounded by a context or a limit, and every refusal names what
//     was asked for and what is available.
//
// Where to start: [GeneratedCall].Unary in generated.go begins a call; endpoint.go is what it is
// made to, in this process (endpoint_local.go, serve.go), in another one (endpoint_remote.go, and
// dispatch.go where it arrives there) or behind a connect client (endpoint_client.go).
// docs/architecture.md follows that path with file names.
//
// The files by subject:
//
//	calls      generated.go (all that generated code calls), service.go (and its methods),
//	           call.go, endpoint*.go, serve.go, stream.go, pipe.go, future.go, standalone.go
//	context    context.go, metadata.go, chain.go (the calls that a call waits for),
//	           interceptor.go, clientinterceptor.go, retry.go, errors.go
//	nodes      node.go, builtin.go, create.go, stop.go, find.go, ref.go, tunneltag.go
//	processes  host.go (on internal/session, listen, peers), events.go, child.go, supervise.go,
//	           remote.go, dispatch.go, latency.go (what runs inline), web.go, webguard.go,
//	           health.go
package runtime
