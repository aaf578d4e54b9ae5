package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/raylink/raylink"
	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/internal/dqn"
	"github.com/raylink/raylink/services/ps/archive"
)

// TestMain serves a node in a process that was launched for one.
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

// serveOrPrepare starts and closes a system. In a node's process it does not return; in the test's
// process it enables launching node processes.
func serveOrPrepare() error {
	// By default the race detector delays the exit of every process by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		return err
	}
	rt, err := raylink.Init(context.Background(), nodes()...)
	if err != nil {
		return err
	}
	return rt.Close()
}

// shortConfig returns the configuration of a run that ends after a few hundred learner steps,
// whatever the policy has learned.
func shortConfig() *cartpolev1.RunConfig {
	config := defaultConfig()
	config.Exam.Every, config.Exam.Few, config.Exam.Many, config.Exam.Pass = 300, 2, 3, 0
	return config
}

func TestPipelineTransfersDataOnEveryLink(t *testing.T) {
	for _, sampling := range []string{"uniform", "prioritized"} {
		t.Run(sampling, func(t *testing.T) {
			config := shortConfig()
			if sampling == "prioritized" {
				config.Learning.Priorities = defaultPriorities()
			}
			testPipeline(t, config)
		})
	}
}

func testPipeline(t *testing.T, config *cartpolev1.RunConfig) {
	t.Helper()
	t.Setenv("RAYLINK_DATA", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	res, err := train(ctx, config, nil)
	require.NoError(t, err)
	run := res.GetRun()
	assert.Equal(t, cartpolev1.RunState_RUN_STATE_SOLVED, run.GetState(), "any policy passes this exam")
	assert.GreaterOrEqual(t, run.GetLearnerSteps(), uint64(300))
	// There are two environment steps per learner step, plus the workers' maximum lead.
	c := defaultConfig().GetExperience()
	most := 2*run.GetLearnerSteps() + c.GetWarmup() + 4*uint64(c.GetStint()) + 2*uint64(defaultConfig().GetLearning().GetPushEvery())
	assert.GreaterOrEqual(t, run.GetSteps(), 2*run.GetLearnerSteps())
	assert.LessOrEqual(t, run.GetSteps(), most)
	last := run.GetEpisodes()[len(run.GetEpisodes())-1]
	assert.Greater(t, last.GetVersion(), uint64(1), "workers act with newer parameters than the first")
	assert.Equal(t, run.GetExams()[len(run.GetExams())-1].GetVersion(), res.GetVersion())
	assert.Positive(t, res.GetPlayed(), "the player played the version that it pulled by tag")
	assert.FileExists(t, res.picture)

	// The policy outlives the system, and is what was played.
	require.FileExists(t, res.policy)
	version, content, release, err := archive.Read(filepath.Dir(res.policy), tagSolved)
	require.NoError(t, err)
	_, err = dqn.ParsePolicy(content)
	require.NoError(t, err)
	require.NoError(t, release())
	assert.Equal(t, map[string]string{
		"policy-version": strconv.FormatUint(res.GetVersion(), 10),
		"mean-return":    strconv.FormatFloat(res.GetExam(), 'f', 1, 64),
		"seed":           "1",
	}, version.GetInfo())
}

func TestNothingIsLearnedWithoutOneLink(t *testing.T) {
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
			assert.Empty(t, res.policy)
			assert.Len(t, res.GetRun().GetExams(), 1, "only the first version can be examined")
			for _, e := range res.GetRun().GetEpisodes() {
				assert.Equal(t, uint64(1), e.GetVersion(), "workers can only act with the first version")
			}
			if cut == cartpolev1.Link_LINK_REPLAY {
				assert.Zero(t, res.GetRun().GetLearnerSteps(), "the learner has no data to learn from")
			}
		})
	}
}
