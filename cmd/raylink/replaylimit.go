package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/gen/raylink/replay/v1/replayv1raylink"
)

// limitFlags are the flags of the command.
type limitFlags struct {
	minSize, queue, stack uint64
	samples, buffer       float64
}

func (r *replayApp) limitCommand() *cobra.Command {
	var f limitFlags
	cmd := r.finish(&cobra.Command{
		Use:   "limit TABLE",
		Short: "Replace the limiter of a table",
		Long: `limit replaces a table's limiter, and prints the new one: a minimum size, a number of samples per insert with a buffer, a queue or a
stack. Counting begins anew, as though the table's items had just been inserted. Calls that wait go on by the new limiter.

One that could only deadlock is refused, with the reason.`,
		Example: `  raylink replay limit per --min-size 1000
  raylink replay limit per --samples-per-insert 8 --min-size 1000 --buffer 4000
  raylink replay limit queue --queue 64`,
		Args:              between(1, 1, "TABLE"),
		ValidArgsFunction: r.complete(r.completeTable),
	})
	flags := cmd.Flags()
	flags.Uint64Var(&f.minSize, "min-size", 0, "the number of items below which samples wait")
	flags.Float64Var(&f.samples, "samples-per-insert", 0, "the number of samples for each insert")
	flags.Float64Var(&f.buffer, "buffer", 0, "how many samples there may be more or less than that")
	flags.Uint64Var(&f.queue, "queue", 0, "the capacity of a queue, for a table with the sampler fifo")
	flags.Uint64Var(&f.stack, "stack", 0, "the capacity of a stack, for a table with the sampler lifo")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := f.limiter(cmd.Flags().Changed)
		if err != nil {
			return err
		}
		return r.call(cmd.Context(), func(ctx context.Context, _ string, handle *replayv1raylink.Replay) error {
			if _, err := handle.SetLimiter(ctx, &replayv1.SetLimiterRequest{Table: args[0], Limiter: l}); err != nil {
				return err
			}
			if r.output == outputJSON {
				return r.writeJSON(map[string]string{"table": args[0], "limiter": limiterText(l)})
			}
			return r.write(word(args[0]) + ": " + limiterText(l) + "\n")
		})
	}
	return cmd
}

// limiter returns the limiter of the flags that are given.
func (f *limitFlags) limiter(given func(name string) bool) (*replayv1.Limiter, error) {
	const rules = "give --min-size, --samples-per-insert with --buffer, --queue or --stack"
	l := &replayv1.Limiter{MinSize: f.minSize}
	var kinds []string
	for _, name := range []string{"samples-per-insert", "queue", "stack"} {
		if given(name) {
			kinds = append(kinds, "--"+name)
		}
	}
	switch {
	case len(kinds) > 1:
		return nil, usagef("%s are given: a table has one limiter", strings.Join(kinds, " and "))
	case len(kinds) == 0 && !given("min-size"):
		return nil, usagef("no limiter is given: %s", rules)
	case given("samples-per-insert") != given("buffer"):
		return nil, usagef("--samples-per-insert and --buffer belong together: %s", rules)
	case (given("queue") || given("stack")) && given("min-size"):
		return nil, usagef("%s and --min-size are given: samples of a queue or a stack wait while it is empty", kinds[0])
	case given("queue"):
		l.Rule, l.Capacity = replayv1.LimiterRule_LIMITER_RULE_QUEUE, f.queue
	case given("stack"):
		l.Rule, l.Capacity = replayv1.LimiterRule_LIMITER_RULE_STACK, f.stack
	case given("samples-per-insert"):
		l.Rule, l.SamplesPerInsert, l.Buffer = replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT, f.samples, f.buffer
	}
	return l, nil
}

// limiterText describes a limiter.
func limiterText(l *replayv1.Limiter) string {
	switch l.GetRule() {
	case replayv1.LimiterRule_LIMITER_RULE_SAMPLES_PER_INSERT:
		return fmt.Sprintf("%g samples per insert +- %g, at least %d items", l.GetSamplesPerInsert(), l.GetBuffer(), max(1, l.GetMinSize()))
	case replayv1.LimiterRule_LIMITER_RULE_QUEUE:
		return fmt.Sprintf("queue of %d", l.GetCapacity())
	case replayv1.LimiterRule_LIMITER_RULE_STACK:
		return fmt.Sprintf("stack of %d", l.GetCapacity())
	case replayv1.LimiterRule_LIMITER_RULE_UNSPECIFIED:
	}
	return fmt.Sprintf("at least %d items", max(1, l.GetMinSize()))
}
