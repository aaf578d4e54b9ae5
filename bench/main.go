// Bench runs the same calls on RayLink and on comparable systems, interleaved, and prints the
// results. README.md describes the set-up of each system and how to read the results; `make bench`
// runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := begin(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func begin() error {
	if words := os.Getenv(roleEnv); words != "" {
		return runRole(strings.Fields(words), os.Stdin, os.Stdout)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// errSlowFloor means that the comparison is invalid: the system that does the least was not the
// fastest.
var errSlowFloor = errors.New("a floor is slower than a system that does more")

func run(ctx context.Context, args []string, out, log io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var o options
	flags.StringVar(&o.pattern, "bench", "", "`rows` to run: a prefix of their names, or a regular expression")
	selection := flags.String("systems", "", "`systems` to run, separated by commas (default all)")
	flags.IntVar(&o.rounds, "rounds", 5, "number of rounds: each measures everything once")
	flags.DurationVar(&o.duration, "duration", 500*time.Millisecond, "duration of each measurement")
	cpu := flags.String("cpuprofile", "", "write a CPU profile of each process to a file with this `prefix`")
	mem := flags.String("memprofile", "", "write an allocation profile of each process to a file with this `prefix`")
	picture := flags.String("plot", "", "plot the results to this `file` (.png, .svg)")
	table := flags.String("summary", "", "write a Markdown table of all rows to this `file`")
	read := flags.String("read", "", "measure nothing: plot and summarize the output of an earlier run in this `file`")
	buffers := flags.Bool("buffers", false, "measure the replay beside dm-reverb and cpprb, and nothing else; they are installed if they are missing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *selection != "" {
		o.systems = strings.Split(*selection, ",")
		for _, name := range o.systems {
			if !slices.Contains(names(), name) {
				return fmt.Errorf("unknown system %q: there are %s", name, strings.Join(names(), ", "))
			}
		}
	}
	if o.rounds < 1 || o.duration <= 0 {
		return fmt.Errorf("nothing to measure in %d rounds of %v", o.rounds, o.duration)
	}
	o.install = true
	o.profile = "cpu=" + *cpu + ",mem=" + *mem
	present := func(lines []line) error {
		where := machine(time.Now())
		var err error
		if *picture != "" {
			err = draw(lines, where, *picture)
		}
		if *table != "" {
			err = errors.Join(err, summarize(lines, where, *table))
		}
		return err
	}
	if *read != "" {
		lines, err := readResults(*read)
		if err != nil {
			return err
		}
		return present(lines)
	}
	rs, err := selected(rowsOf(*buffers), o.pattern)
	if err != nil {
		return err
	}
	d, err := newDriver(o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	res, err := d.run(ctx, rs)
	if err != nil {
		return err
	}
	lines := res.lines()
	if err := printJSON(out, lines); err != nil {
		return err
	}
	fmt.Fprintln(out, "\n"+machine(time.Now()))
	if err := printTable(out, lines); err != nil {
		return err
	}
	if err := printTargets(out, res.targets(lines)); err != nil {
		return err
	}
	if err := present(lines); err != nil {
		return err
	}
	if slow := slowFloors(lines); len(slow) > 0 {
		res.failed = append(res.failed, fmt.Errorf("%w:\n%s", errSlowFloor, strings.Join(slow, "\n")))
	}
	return errors.Join(res.failed...)
}
