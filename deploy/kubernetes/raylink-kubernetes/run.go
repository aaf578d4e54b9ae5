package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
)

// errStopped is the error of a run that was asked to stop, and errDead of one whose submitting
// process has died.
var (
	errStopped = errors.New("the run was stopped")
	errDead    = errors.New("the command that has started the run has died")
)

// session is one run of the program.
type session struct {
	*cluster

	plan *plan
	out  io.Writer
	say  func(line string)
	// stop is closed to stop in order, dead to end at once.
	stop, dead <-chan struct{}
	// beat is how often the run's deadline is extended.
	beat time.Duration
}

// start runs the program, and removes all of it whatever has ended it.
func (s *session) start(ctx context.Context) (result wire.Result) {
	result.Target = s.plan.target
	exit, running, err := s.do(ctx)
	if err != nil {
		result.Error = err.Error()
	}
	result.Exit, result.Running = exit, running
	return result
}

func (s *session) do(ctx context.Context) (exit int, running bool, err error) {
	began := time.Now()
	if err := s.check(ctx); err != nil {
		return 0, false, err
	}
	job := s.plan.driver(lease)
	if job.UID, err = s.apply(ctx, job, false); err != nil {
		return 0, false, err
	}
	defer func() {
		if running {
			return
		}
		wait := deletion
		if isClosed(s.dead) {
			wait = quick
		}
		err = errors.Join(err, s.remove(context.WithoutCancel(ctx), job.Name, job.UID, wait))
	}()
	for _, object := range s.plan.owned(ownerOf(job)) {
		if _, err := s.apply(ctx, object, false); err != nil {
			return 0, false, err
		}
		switch {
		case isClosed(s.dead):
			return 0, false, errDead
		case isClosed(s.stop):
			return 0, false, errStopped
		}
	}
	if s.plan.run.Detach {
		return 0, true, nil
	}
	s.say(fmt.Sprintf("the run %s is in the namespace %s", s.plan.target.ID, s.namespace))
	exit, err = s.attend(ctx, func(ctx context.Context) error { return s.extend(ctx, began) })
	if errors.Is(err, errStopped) {
		s.say("interrupted: the run stops in order")
		err = errors.Join(err, s.suspend(context.WithoutCancel(ctx)))
	}
	return exit, false, err
}

// quick is how long a process that should have ended waits for what it deletes.
const quick = 5 * time.Second

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// check has the API server check everything without an effect, so that it refuses what is invalid,
// not allowed, or beyond a quota, before anything is started.
func (s *session) check(ctx context.Context) error {
	if err := s.checkVersion(); err != nil {
		return err
	}
	if _, err := s.apply(ctx, s.plan.driver(lease), true); err != nil {
		return err
	}
	for _, object := range s.plan.owned(nil) {
		if _, err := s.apply(ctx, object, true); err != nil {
			return err
		}
	}
	return nil
}

// attend follows the run until it ends, and prints what the program prints.
func (s *session) attend(ctx context.Context, beat func(context.Context) error) (exit int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var over atomic.Bool
	pods, logged := make(chan string, 1), make(chan error, 1)
	o := newObserver(s.plan, s.say, func(pod string) { pods <- pod })
	observed := make(chan struct{})
	go func() {
		defer close(observed)
		s.observe(ctx, o)
	}()
	defer func() {
		cancel()
		<-observed
	}()
	tick := time.NewTicker(s.beat)
	defer tick.Stop()
	hasLog := false
	defer func() {
		if hasLog {
			cancel()
			<-logged //nolint:errcheck // the run has ended for another reason
		}
	}()
	for {
		select {
		case pod := <-pods:
			hasLog = true
			go func() { logged <- s.copyLog(ctx, pod, over.Load, s.out) }()
		case <-tick.C:
			if err := beat(ctx); apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
				return 0, err
			} else if err != nil {
				s.say(err.Error())
			}
		case <-s.stop:
			return 0, errStopped
		case <-s.dead:
			return 0, errDead
		case end := <-o.result:
			over.Store(true)
			select {
			case pod := <-pods: // it has ended as soon as it was seen
				hasLog = true
				go func() { logged <- s.copyLog(ctx, pod, over.Load, s.out) }()
			default:
			}
			if hasLog && end.err == nil {
				hasLog = false
				select {
				case err := <-logged:
					return end.exit, err
				case <-time.After(logRest):
					hasLog = true
				case <-s.dead:
					hasLog = true
				}
			}
			return end.exit, end.err
		}
	}
}

// logRest is how long the rest of a log may take after the end of the program.
const logRest = 30 * time.Second

// extend moves the run's deadline. The job's time begins no earlier than this program's.
func (s *session) extend(ctx context.Context, began time.Time) error {
	_, err := s.client.BatchV1().Jobs(s.namespace).Get(ctx, s.plan.name(""), metav1.GetOptions{})
	if err == nil {
		_, err = s.apply(ctx, s.plan.driver(int64(time.Since(began).Seconds())+lease), false)
	}
	if err != nil {
		return fmt.Errorf("extending the run's deadline: %w", err)
	}
	return nil
}

// suspend ends the pod of the program gracefully, while the machines are there still.
func (s *session) suspend(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(graceful)*time.Second+quick)
	defer cancel()
	patch := []byte(`{"spec":{"suspend":true}}`)
	options := metav1.PatchOptions{FieldManager: manager}
	if _, err := s.client.BatchV1().Jobs(s.namespace).Patch(ctx, s.plan.name(""), types.MergePatchType, patch, options); err != nil {
		return fmt.Errorf("stopping the program: %w", err)
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		pods, err := s.driverPods(ctx)
		if err == nil && len(pods) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.dead:
			return nil
		case <-ctx.Done():
			return nil // its deletion is to end it
		}
	}
}

func (s *session) driverPods(ctx context.Context) ([]corev1.Pod, error) {
	selector := runLabel + "=" + s.plan.target.ID + "," + partLabel + "=" + partDriver
	pods, err := s.client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	return pods.Items, nil
}

// state finds out what has become of a run that was left behind.
func (s *session) state(ctx context.Context) (result wire.Result) {
	result.Target = s.plan.target
	job, err := s.client.BatchV1().Jobs(s.namespace).Get(ctx, s.plan.name(""), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		result.Gone = true
		return result
	case err != nil:
		result.Error = err.Error()
		return result
	}
	var failed string
	isOver := false
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			isOver = true
			if c.Type == batchv1.JobFailed {
				failed = words(c.Reason, c.Message)
			}
		}
	}
	if !isOver {
		result.Running = true
		return result
	}
	pods, err := s.driverPods(ctx)
	if err != nil {
		result.Error = err.Error()
		return result
	}
	o := newObserver(s.plan, func(string) {}, func(string) {})
	for i := range pods {
		o.pod(&pods[i])
	}
	select {
	case end := <-o.result:
		result.Exit = end.exit
		if end.err != nil {
			result.Error = end.err.Error()
		}
	default:
		result.Error = failed
	}
	return result
}

// follow prints what a run prints, from the beginning, until it ends.
func (s *session) follow(ctx context.Context) wire.Result {
	result := s.state(ctx)
	if result.Gone || !result.Running && result.Error != "" {
		return result
	}
	result = wire.Result{Target: s.plan.target}
	s.plan.run.Restarts = math.MaxInt // the cluster decides about the machines
	exit, err := s.attend(ctx, func(context.Context) error { return nil })
	if err != nil {
		result.Error = err.Error()
	}
	result.Exit = exit
	return result
}

// end stops a run, in order or at once, and removes it.
func (s *session) end(ctx context.Context, inOrder bool) (result wire.Result) {
	result.Target = s.plan.target
	var err error
	if inOrder {
		err = s.suspend(ctx)
	}
	if apierrors.IsNotFound(err) {
		err = nil
	}
	if err = errors.Join(err, s.remove(ctx, s.plan.name(""), "", deletion)); err != nil {
		result.Error = err.Error()
	}
	result.Gone = err == nil
	return result
}
