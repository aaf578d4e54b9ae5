// Package dqn learns to act by double deep Q-learning on n-step returns, in plain Go.
//
// It knows nothing of where its data comes from and where its results go; that is the pipeline's affair. Its parts meet where
// the pipeline's processes do:
//
//   - an actor holds a [Policy] and explores with an [Explorer]; an [Assembler] makes [Transition] values of its steps;
//   - a [Learner] takes each [Batch] of transitions, sampled from wherever they are kept, and improves its [Network];
//   - a network travels as bytes: [Network.MarshalBinary] and [ParseNetwork].
//
// Everything random is drawn from generators that the caller gives, so a run that is single-threaded can be repeated.
// None of it is for several goroutines at once.
package dqn
