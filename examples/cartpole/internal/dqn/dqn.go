// Package dqn implements double deep Q-learning with n-step returns, in plain Go.
//
// It is independent of the pipeline that transports its data. Its interfaces are the data that
// processes exchange:
//
//   - an actor has a [Policy] and explores with an [Explorer]; an [Assembler] turns its steps into
//     [Transition] values;
//   - a [Learner] improves its [Network] by each sampled [Batch] of transitions;
//   - a network is serialized as safetensors content by [Network.MarshalBinary] and [ParseNetwork].
//
// All random numbers come from generators passed by the caller, so single-threaded runs are
// repeatable. No type is safe for concurrent use.
package dqn
