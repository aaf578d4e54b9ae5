// Command cartpole trains CartPole with a complete pipeline: workers that act, a replay, a learner,
// a parameter server and shared counters, each in a process of its own. README.md describes the
// nodes and the flow of data. Read this file first, then run.go, then a node: worker.go or
// learner.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/raylink/raylink"
	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/play"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "cartpole:", err)
		os.Exit(1)
	}
}

// nodes returns the node types that this program's processes can host. Code before Init runs in
// every process, so it is limited to this and the flags.
func nodes() []raylink.Option {
	return []raylink.Option{
		cartpolev1raylink.ManagerType(newManager),
		cartpolev1raylink.RunnerType(newRunner),
		cartpolev1raylink.WorkerType(newWorker),
		cartpolev1raylink.LearnerType(newLearner),
		cartpolev1raylink.PlayerType(newPlayer),
	}
}

var errNotSolved = errors.New("not solved")

func run(ctx context.Context) error {
	config := defaultConfig()
	flag.Uint64Var(&config.Seed, "seed", config.GetSeed(), "seed of all random numbers of the run")
	seeds := flag.Int("seeds", 0, "number of seeds to train, one after another; prints a table")
	cut := flag.String("ablate", "", "disable one link, pull or replay, to show that learning needs it")
	limit := flag.Duration("limit", config.GetLimit().AsDuration(), "time limit of a run, from its first environment step")
	prioritized := flag.Bool("prioritized", false, "sample transitions by how much there is to learn from them, instead of uniformly")
	workers := flag.Uint("workers", uint(config.GetWorkers()), "number of workers")
	flag.Parse()
	if *workers < 1 || *workers > 1024 {
		return fmt.Errorf("invalid value %d of -workers: use 1 to 1024", *workers)
	}
	config.Workers = uint32(*workers)
	if *prioritized {
		config.Learning.Priorities = defaultPriorities()
	}
	config.Limit = durationpb.New(*limit)
	switch *cut {
	case "":
	case "pull":
		config.Cut = cartpolev1.Link_LINK_PULL
	case "replay":
		config.Cut = cartpolev1.Link_LINK_REPLAY
	default:
		return fmt.Errorf("invalid value %q of -ablate: use pull or replay", *cut)
	}
	if *seeds > 0 {
		return table(ctx, config, *seeds)
	}
	res, err := train(ctx, config, os.Stdout)
	if err != nil {
		return err
	}
	res.print(os.Stdout)
	if !res.Solved {
		return errNotSolved
	}
	return nil
}

// defaultConfig returns the parameters found by tuning the single-process version (internal/solo).
func defaultConfig() *cartpolev1.RunConfig {
	exam := play.DefaultExam()
	return &cartpolev1.RunConfig{
		Seed:    1,
		Workers: 2,
		Experience: &cartpolev1.Experience{
			Lookout: 3, Discount: 0.995, Explore: 2_000, Stint: 32, Capacity: 50_000, Warmup: 500,
		},
		Learning: &cartpolev1.Learning{Batch: 64, PushEvery: 20},
		Exam:     &cartpolev1.Exam{Few: uint32(exam.Few), Many: uint32(exam.Many), Pass: exam.Pass, Every: 500}, //nolint:gosec // small numbers
		Pace:     2,
		Limit:    durationpb.New(85 * time.Second),
	}
}

// defaultPriorities returns those of T. Schaul and others, "Prioritized experience replay" (2016).
func defaultPriorities() *cartpolev1.Priorities {
	return &cartpolev1.Priorities{Exponent: 0.6, Weights: 0.4, Least: 0.01}
}

// table trains many seeds, each in a separate system, and prints a table.
func table(ctx context.Context, config *cartpolev1.RunConfig, seeds int) error {
	var took []float64
	solved := 0
	for i := range seeds {
		res, err := train(ctx, config, nil)
		if err != nil {
			return fmt.Errorf("seed %d: %w", config.GetSeed(), err)
		}
		if i == 0 {
			// Only after the first Init: before, this may be a node's process, which would print it
			// too.
			fmt.Println("seed  before   exam  played  learner steps  env steps  seconds")
		}
		verdict := "NOT SOLVED"
		if res.Solved {
			verdict = "solved"
			solved++
			took = append(took, res.Took.AsDuration().Seconds())
		}
		fmt.Printf("%4d  %6.1f  %5.1f  %6.1f  %13d  %9d  %7.1f  %s\n", config.GetSeed(), res.First, res.Exam, res.Played,
			res.Run.GetLearnerSteps(), res.Run.GetSteps(), res.Took.AsDuration().Seconds(), verdict)
		config.Seed++
	}
	slices.Sort(took)
	if solved > 0 {
		fmt.Printf("%d of %d solved; median %.1f s, maximum %.1f s\n", solved, seeds, took[len(took)/2], took[len(took)-1])
	}
	if solved*20 < seeds*19 {
		return fmt.Errorf("%w: %d of %d seeds", errNotSolved, seeds-solved, seeds)
	}
	return nil
}
