// Package runtime is what generated code stands on: nodes, the handles that reach them, and the
// host that a process is.
//
// Users meet it in three places. A node's set-up function is given a [Node], by which the node
// knows itself, creates children, owns tasks and publishes attributes. A handle's Ref is a [Ref],
// which names the node and answers what any node can be asked. An async call returns a [Future].
// The front doors (packages raylink and join) make the [Host] that all of them belong to.
//
// What it promises:
//
//   - A node's methods take turns, in the order in which they were called by each caller (mailbox);
//     concurrent methods and streams run beside
//     the turns. docs/turns.md has the rules.
//   - A call behaves the same whatever way it goes: in one process, through a tunnel, by HTTP.
//     internal/contract is the test of that.
//   - A node's end is noticed, its callers are told how it came about, and nothing of it is left:
//     no process, goroutine, socket or file.
//   - Nothing waits without a bound or a context, and whatever is refused says what was asked for
//     and what there is.
//
// Where to start: [Unary].Call in call.go is where a call begins; target.go decides whether its
// node is here or elsewhere; serve.go runs it here, remote.go sends it there, and dispatch.go is
// where it arrives. docs/architecture.md walks that way with file names.
//
// The files, by what they are about:
//
//	calls      method.go, service.go (the generated table), call.go, target.go, serve.go, stream.go, pipe.go, future.go, client.go, stub.go
//	context    context.go, metadata.go, chain.go (who waits for whom), interceptor.go, errors.go
//	nodes      node.go, builtin.go, create.go, stop.go, find.go, ref.go, ended.go, tunneltag.go
//	processes  host.go, child.go, registry.go (the line to Brain), links.go (connections), remote.go, dispatch.go, front.go, web.go, health.go
package runtime
