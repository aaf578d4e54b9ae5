package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/raylink/raylink"
	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/curve"
	"github.com/raylink/raylink/examples/cartpole/internal/pole"
	"github.com/raylink/raylink/services/storage"
)

// outcome is what a run came to.
type outcome struct {
	*cartpolev1.TrainResponse

	// picture is the file of the learning curve.
	picture string
}

// train makes a system for one run, and ends it. Where progress is nil it says nothing meanwhile.
func train(ctx context.Context, config *cartpolev1.RunConfig, progress io.Writer) (_ outcome, err error) {
	rt, err := raylink.Init(ctx, nodes()...)
	if err != nil {
		return outcome{}, err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	manager, err := cartpolev1raylink.CreateManager(ctx, rt, &cartpolev1.ManagerConfig{Run: config})
	if err != nil {
		return outcome{}, err
	}
	training := manager.TrainAsync(ctx, nil)
	if progress != nil {
		store, err := openStorage(ctx, rt)
		if err != nil {
			return outcome{}, err
		}
		follow(ctx, progress, store, training.Done())
	}
	res, err := training.Get(ctx)
	if err != nil {
		return outcome{}, err
	}
	out := outcome{TrainResponse: res, picture: filepath.Join(rt.RunDirectory().Path(), "learning-curve.png")}
	return out, draw(res.GetRun()).WritePNG(out.picture)
}

// follow prints a line about the run, again and again, until it is over.
func follow(ctx context.Context, w io.Writer, store *storage.Client, over <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last *status
	for {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		now, err := readStatus(ctx, store)
		if err != nil {
			continue // what is not there yet will be
		}
		fmt.Fprintln(w, now.line(last))
		last = now
	}
}

// status is what storage says of the run at one moment.
type status struct {
	at       time.Time
	steps    int64
	episodes uint64
	mean     float64
	// behind is how many versions the worker that is furthest behind has not pulled yet.
	behind  uint64
	learner cartpolev1.LearnerStats
	exam    cartpolev1.ExamStats
}

func readStatus(ctx context.Context, store *storage.Client) (*status, error) {
	s := &status{at: time.Now()}
	var err error
	if s.steps, err = storage.GetOr[int64](ctx, store, keySteps, 0); err != nil {
		return nil, err
	}
	if err := storage.GetMessage(ctx, store, keyLearner, &s.learner); err != nil {
		return nil, err
	}
	workers := 0
	for entry, err := range store.All(ctx, keyWorker) {
		if err != nil {
			return nil, err
		}
		var worker cartpolev1.WorkerStats
		if err := entry.GetValue().GetMessageValue().UnmarshalTo(&worker); err != nil {
			return nil, err
		}
		workers++
		s.episodes += worker.GetEpisodes()
		s.mean += worker.GetMeanReturn()
		if v := s.learner.GetVersion(); v > worker.GetVersion() {
			s.behind = max(s.behind, v-worker.GetVersion())
		}
	}
	s.mean /= float64(max(workers, 1))
	// There is no exam before the first.
	_ = storage.GetMessage(ctx, store, keyExam, &s.exam)
	return s, nil
}

func (s *status) line(last *status) string {
	elapsed := 1.0
	if last != nil {
		elapsed = s.at.Sub(last.at).Seconds()
	} else {
		last = &status{}
	}
	return fmt.Sprintf("%5d episodes  mean return %5.1f  %6.0f env steps/s  %5.0f learner steps/s  version %4d  workers behind by %d  last exam %5.1f",
		s.episodes, s.mean, float64(s.steps-last.steps)/elapsed, float64(s.learner.GetSteps()-last.learner.GetSteps())/elapsed,
		s.learner.GetVersion(), s.behind, s.exam.GetMeanReturn())
}

// print is the summary.
func (o outcome) print(w io.Writer) {
	fmt.Fprintf(w, "\nbefore training the policy earned %.1f on average\n", o.GetFirst())
	if o.GetExam() > 0 {
		fmt.Fprintf(w, "version %d passed its exam with %.1f, %.1f s after the first environment step (%d environment steps, %d learner steps)\n",
			o.GetVersion(), o.GetExam(), o.GetTook().AsDuration().Seconds(), o.GetRun().GetSteps(), o.GetRun().GetLearnerSteps())
		fmt.Fprintf(w, "played by another process, that version earned %.1f over 100 fresh episodes; %d are asked for\n", o.GetPlayed(), pole.Solved)
	} else {
		fmt.Fprintf(w, "no version passed its exam within %.1f s (%d environment steps, %d learner steps)\n",
			o.GetTook().AsDuration().Seconds(), o.GetRun().GetSteps(), o.GetRun().GetLearnerSteps())
	}
	fmt.Fprintf(w, "learning curve: %s\n", o.picture)
}

// draw makes the learning curve of a run: each point of the workers' is the mean of some episodes.
func draw(run *cartpolev1.RunResponse) curve.Curve {
	const smooth = 10
	c := curve.Curve{Title: "CartPole-v1", Goal: pole.Solved, Best: pole.MaxSteps}
	var sum float64
	for i, e := range run.GetEpisodes() {
		sum += e.GetEarned()
		if (i+1)%smooth == 0 {
			c.Training = append(c.Training, curve.Point{Steps: e.GetSteps(), Return: sum / smooth})
			sum = 0
		}
	}
	for _, e := range run.GetExams() {
		c.Exams = append(c.Exams, curve.Point{Steps: e.GetSteps(), Return: e.GetMeanReturn()})
	}
	return c
}
