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
	"github.com/raylink/raylink/services/ps"
	"github.com/raylink/raylink/services/storage"
)

// outcome is the result of a run.
type outcome struct {
	*cartpolev1.TrainResponse

	// picture is the file of the learning curve.
	picture string
	// policy is the file of the policy that passed its exam; empty if none did.
	policy string
}

// train starts a system for one run, and closes it afterwards. If progress is not nil, it prints
// the run's status there.
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
	if res.GetRun().GetState() == cartpolev1.RunState_RUN_STATE_SOLVED {
		if out.policy, err = savePolicy(ctx, rt); err != nil {
			return outcome{}, err
		}
	}
	return out, draw(res.GetRun()).WritePNG(out.picture)
}

// savePolicy saves the policy that passed its exam in the run's directory, where it outlives the
// system, and returns its file.
func savePolicy(ctx context.Context, rt *raylink.Runtime) (_ string, err error) {
	parameters, err := openParameters(ctx, rt, ps.WithoutOfficer())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, parameters.Close()) }()
	models := rt.RunDirectory().Models()
	return filepath.Join(models, tagSolved+".safetensors"), parameters.Save(ctx, models, tagSolved)
}

// follow prints a status line every second until the run ends.
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
			continue // not all entries exist yet
		}
		fmt.Fprintln(w, now.line(last))
		last = now
	}
}

// status is a snapshot of the run's statistics in storage.
type status struct {
	at       time.Time
	steps    int64
	episodes uint64
	mean     float64
	// behind is the number of versions that the slowest worker lags behind the learner.
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
	// Not found before the first exam.
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

// print prints the summary.
func (o outcome) print(w io.Writer) {
	fmt.Fprintf(w, "\nbefore training, the policy's mean return was %.1f\n", o.GetFirst())
	if o.GetExam() > 0 {
		fmt.Fprintf(w, "version %d passed its exam with %.1f, %.1f s after the first environment step (%d environment steps, %d learner steps)\n",
			o.GetVersion(), o.GetExam(), o.GetTook().AsDuration().Seconds(), o.GetRun().GetSteps(), o.GetRun().GetLearnerSteps())
		fmt.Fprintf(w, "played by another process, its mean return over 100 new episodes was %.1f; required are %d\n", o.GetPlayed(), pole.Solved)
	} else {
		fmt.Fprintf(w, "no version passed its exam within %.1f s (%d environment steps, %d learner steps)\n",
			o.GetTook().AsDuration().Seconds(), o.GetRun().GetSteps(), o.GetRun().GetLearnerSteps())
	}
	fmt.Fprintf(w, "learning curve: %s\n", o.picture)
	if o.policy != "" {
		fmt.Fprintf(w, "solved policy: %s\n", o.policy)
	}
}

// draw returns a run's learning curve. Each point of the workers is the mean of several episodes.
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
