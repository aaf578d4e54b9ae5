// Bench runs the same calls on RayLink and on its peers, side by side, and prints what came of it. README.md says how each is set up, and how to
// read the result; `make bench` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
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
		return role(strings.Fields(words), os.Stdin, os.Stdout)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// errSlowFloor says that the comparison is not worth much: what does the least wasn't the fastest.
var errSlowFloor = errors.New("a floor is slower than what it is the floor of")

func run(ctx context.Context, args []string, out, log io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var o options
	flags.StringVar(&o.pattern, "bench", "", "`rows` to run: the beginning of their names, or a regular expression")
	names := flags.String("systems", "", "`systems` to run, separated by commas; by default all")
	flags.IntVar(&o.rounds, "rounds", 5, "how often everything is measured")
	flags.DurationVar(&o.duration, "duration", 500*time.Millisecond, "how long each measurement lasts")
	cpu := flags.String("cpuprofile", "", "write processor profiles, of each process its own, to files that begin with this `prefix`")
	mem := flags.String("memprofile", "", "write profiles of allocations likewise")
	picture := flags.String("plot", "", "draw a picture of the result to this `file` (.png, .svg)")
	table := flags.String("summary", "", "write a table of all rows, in Markdown, to this `file`")
	read := flags.String("read", "", "measure nothing, and draw and sum up what an earlier run has printed to this `file`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *names != "" {
		o.systems = strings.Split(*names, ",")
		for _, name := range o.systems {
			if _, err := systemNamed(name); err != nil {
				return err
			}
		}
	}
	if o.rounds < 1 || o.duration <= 0 {
		return fmt.Errorf("%d rounds of %v measure nothing", o.rounds, o.duration)
	}
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
		lines, err := earlier(*read)
		if err != nil {
			return err
		}
		return present(lines)
	}
	rs, err := selected(rows(), o.pattern)
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
