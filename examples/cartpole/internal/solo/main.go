// Command solo trains CartPole in one process, without RayLink. If the pipeline fails to learn,
// solo shows whether the cause is the algorithm or the pipeline. It prints a line per seed, and a
// summary.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/raylink/raylink/examples/cartpole/internal/pole"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "solo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c := defaultConfig()
	seeds := flag.Int("seeds", 20, "number of seeds to train, one after another")
	first := flag.Uint64("first", 1, "the first seed")
	flag.IntVar(&c.stale, "stale", c.stale, "learner steps between pulls by the workers")
	flag.IntVar(&c.limit, "limit", c.limit, "maximum number of learner steps of a seed")
	flag.Parse()

	fmt.Println("seed  before   after  learner steps  seconds")
	var took []time.Duration
	solved := 0
	for s := range uint64(max(*seeds, 0)) {
		res, err := train(ctx, c, *first+s)
		if err != nil {
			return fmt.Errorf("seed %d: %w", *first+s, err)
		}
		verdict := "not solved"
		if res.passed && res.last >= pole.Solved {
			verdict = "solved"
			solved++
		}
		took = append(took, res.took)
		fmt.Printf("%4d  %6.1f  %6.1f  %13d  %7.1f  %s\n", *first+s, res.first, res.last, res.learnerSteps, res.took.Seconds(), verdict)
	}
	if len(took) == 0 {
		return nil
	}
	slices.Sort(took)
	fmt.Printf("%d of %d solved; median %.1f s, maximum %.1f s\n",
		solved, len(took), took[len(took)/2].Seconds(), took[len(took)-1].Seconds())
	return nil
}
