// Package slurm is the engine of Slurm (https://slurm.schedmd.com): its jobs are the machines of
// runs. docs/clusters-slurm.md is for users.
//
// A run finds itself in one of three places, which [Env.Find] distinguishes:
//
//   - In a step of several tasks, as `srun raylink run` starts it: task 0 is the head, and each
//     other task has an agent ([Task]).
//   - In an allocation, such as a batch script or the shell of salloc: this process is the head,
//     and starts a step with a task for each machine.
//   - Outside: a batch script of which a run is the only command is submitted, its output is
//     followed, and it is cancelled with this process ([Submission], [Job]).
//
// [Engine] is that of heads.
//
// The files:
//
//	env.go       what the environment says about job, step and task
//	meeting.go   how the tasks of a run find their head, and hold a connection to it
//	task.go      the task of an agent, the other end
//	engine.go    the engine in a step and in an allocation
//	address.go   at which address the head is reached by its machines
//	script.go    the batch script
//	detached.go  jobs that no process follows, for the records of runs
//	job.go       a submitted job: wait, follow, stop
//	watch.go     the head's side of a submission: the submitter's life, the exit code
//	command.go   Slurm's commands, and their errors in its own words
package slurm
