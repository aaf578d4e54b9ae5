package slurm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// DefaultPeriod is how often a submitter says that it lives.
const DefaultPeriod = 5 * time.Second

// patience is how many periods a submitter may be silent: a server of a file system can be away for
// a while, and a client sees changes late.
const patience = 12

// alive is the file by which a submitter says that it lives: the head compares what it reads with
// what it has read before, so that no clocks are compared. Locks and processes can't say it, for
// the submitter is on another machine.
type alive struct {
	Beat   uint64        `json:"beat"`
	Period time.Duration `json:"period"`
}

func (j *Job) beat(n uint64, period time.Duration) error {
	text, err := json.Marshal(alive{n, period})
	if err != nil {
		return err
	}
	if err := writeFile(j.path(aliveFile), text); err != nil {
		return fmt.Errorf("slurm: saying that the submitter lives: %w", err)
	}
	return nil
}

// live says that this process lives, until ctx ends.
func (j *Job) live(ctx context.Context, period time.Duration, say func(line string)) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		if err := j.beat(n, period); err != nil && ctx.Err() == nil {
			say(err.Error())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ErrSubmitterGone is the error of a run whose submitter has died.
var ErrSubmitterGone = errors.New("slurm: the process that has submitted the job is gone")

// Watch is for the head of a job: it calls gone, once, when the submitter has been silent for too
// long, and returns then or when ctx ends. A job that was left behind has no submitter to watch.
func (j *Job) Watch(ctx context.Context, gone func()) {
	last, err := j.readAlive()
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	seen := time.Now()
	for {
		period := last.Period
		if period <= 0 {
			period = DefaultPeriod
		}
		wait := time.NewTimer(period)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		now, err := j.readAlive()
		switch {
		case err == nil && now != last:
			last, seen = now, time.Now()
		case time.Since(seen) > patience*period:
			gone()
			return
		}
	}
}

func (j *Job) readAlive() (alive, error) {
	var a alive
	text, err := os.ReadFile(j.path(aliveFile))
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(text, &a)
}

// Finish is for the head of a job: it says how its run has ended.
func (j *Job) Finish(exit int, failed error) error {
	r := result{Exit: exit}
	if failed != nil {
		r.Error = failed.Error()
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := writeFile(j.path(exitFile), text); err != nil {
		return fmt.Errorf("slurm: saying how the run has ended: %w", err)
	}
	return nil
}
