package main

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/raylink/raylink"
	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
)

// TestMain serves a node where this binary was launched for one.
func TestMain(m *testing.M) {
	if err := serveOrPrepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// serveOrPrepare begins a system and ends it: in a node's process it does not return, elsewhere processes may be launched from then on.
func serveOrPrepare() error {
	// The race detector makes every process wait a second before it ends.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		return err
	}
	rt, err := raylink.Init(context.Background(), nodes()...)
	if err != nil {
		return err
	}
	return rt.Close()
}

// shortConfig is a run that ends after a few hundred learner steps, whatever it has learned.
func shortConfig() *cartpolev1.RunConfig {
	config := defaultConfig()
	config.Exam.Every, config.Exam.Few, config.Exam.Many, config.Exam.Pass = 300, 2, 3, 0
	return config
}

func TestThePipelineCarriesDataOnEveryLink(t *testing.T) {
	t.Setenv("RAYLINK_DATA", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	res, err := train(ctx, shortConfig(), nil)
	require.NoError(t, err)
	run := res.GetRun()
	assert.Equal(t, cartpolev1.RunState_RUN_STATE_SOLVED, run.GetState(), "any policy passes this exam")
	assert.GreaterOrEqual(t, run.GetLearnerSteps(), uint64(300))
	// The pace holds: two environment steps to a learner step, and at the most what the workers may be ahead.
	c := defaultConfig().GetExperience()
	most := 2*run.GetLearnerSteps() + c.GetWarmup() + 4*uint64(c.GetStint()) + 2*uint64(defaultConfig().GetLearning().GetPushEvery())
	assert.GreaterOrEqual(t, run.GetSteps(), 2*run.GetLearnerSteps())
	assert.LessOrEqual(t, run.GetSteps(), most)
	last := run.GetEpisodes()[len(run.GetEpisodes())-1]
	assert.Greater(t, last.GetVersion(), uint64(1), "workers act with newer parameters than the first")
	assert.Equal(t, run.GetExams()[len(run.GetExams())-1].GetVersion(), res.GetVersion())
	assert.Positive(t, res.GetPlayed(), "the player played what it pulled by the tag")
	assert.FileExists(t, res.picture)
}

func TestWithoutOneLinkNothingIsLearned(t *testing.T) {
	for _, cut := range []cartpolev1.Link{cartpolev1.Link_LINK_PULL, cartpolev1.Link_LINK_REPLAY} {
		t.Run(cut.String(), func(t *testing.T) {
			t.Setenv("RAYLINK_DATA", t.TempDir())
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			config := shortConfig()
			config.Cut, config.Limit = cut, durationpb.New(3*time.Second)
			res, err := train(ctx, config, nil)
			require.NoError(t, err)
			assert.Equal(t, cartpolev1.RunState_RUN_STATE_GIVEN_UP, res.GetRun().GetState())
			assert.False(t, res.GetSolved())
			assert.Len(t, res.GetRun().GetExams(), 1, "nothing but the first version was there to examine")
			for _, e := range res.GetRun().GetEpisodes() {
				assert.Equal(t, uint64(1), e.GetVersion(), "a worker acted with parameters that could not have reached it")
			}
			if cut == cartpolev1.Link_LINK_REPLAY {
				assert.Zero(t, res.GetRun().GetLearnerSteps(), "the learner learned from nothing")
			}
		})
	}
}
