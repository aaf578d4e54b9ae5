package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// observer says what becomes of the pods of a run, and finds its end.
type observer struct {
	plan *plan
	say  func(line string)
	// restarts is how many machines may be lost before that ends the run.
	restarts int
	// started is called once, when the program has a log.
	started func(pod string)

	mu     sync.Mutex
	last   map[string]string // what was said of each pod
	joined map[string]bool   // of machines
	lost   map[string]bool   // of pods
	result chan outcome      // the first one is the run's
}

// outcome is the end of a run.
type outcome struct {
	exit int
	err  error
}

func newObserver(p *plan, say func(string), started func(pod string)) *observer {
	return &observer{
		plan: p, say: say, restarts: p.run.Restarts, started: sync1(started),
		last: make(map[string]string), joined: make(map[string]bool), lost: make(map[string]bool), result: make(chan outcome, 1),
	}
}

// sync1 calls f the first time alone.
func sync1(f func(string)) func(string) {
	var once sync.Once
	return func(s string) { once.Do(func() { f(s) }) }
}

func (o *observer) end(exit int, err error) {
	select {
	case o.result <- outcome{exit, err}:
	default: // the run has ended for another reason
	}
}

// sayOnce says something of a pod or a job, if it was not the last that was said of it.
func (o *observer) sayOnce(name, text string) {
	if o.last[name] != text {
		o.last[name] = text
		o.say(text)
	}
}

// pod is called with each state of a pod.
func (o *observer) pod(pod *corev1.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if pod.Labels[partLabel] == partDriver {
		o.driver(pod)
	} else {
		o.agent(pod)
	}
}

func (o *observer) driver(pod *corev1.Pod) {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name != driverContainer {
			continue
		}
		if s.State.Running != nil {
			o.started(pod.Name)
		}
		if ended := s.State.Terminated; ended != nil {
			o.started(pod.Name)
			if ended.Reason != "Error" && ended.Reason != "Completed" {
				o.sayOnce(pod.Name, "the program has ended: "+words(ended.Reason, ended.Message))
			}
			o.end(int(ended.ExitCode), nil)
			return
		}
	}
	for _, s := range pod.Status.InitContainerStatuses {
		if ended := s.State.Terminated; s.Name == awaitContainer && ended != nil && ended.ExitCode != 0 {
			o.end(0, fmt.Errorf("the program was not started: %s", words(ended.Reason, ended.Message)))
			return
		}
	}
	switch {
	case pod.Status.Phase == corev1.PodFailed:
		o.end(0, fmt.Errorf("the pod of the program has failed: %s", cause(pod)))
	case pod.DeletionTimestamp != nil:
		o.end(0, fmt.Errorf("the pod of the program is being deleted: %s", cause(pod)))
	default:
		o.waits(pod, "the program")
	}
}

func (o *observer) agent(pod *corev1.Pod) {
	machine := pod.Labels[groupLabel] + "-" + pod.Annotations[batchv1.JobCompletionIndexAnnotation]
	isOver := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	switch {
	case isOver || pod.DeletionTimestamp != nil:
		if o.lost[pod.Name] {
			return
		}
		o.lost[pod.Name] = true
		delete(o.joined, machine)
		o.restarts--
		text := fmt.Sprintf("the machine %s is lost: %s", machine, cause(pod))
		if o.restarts < 0 {
			o.end(0, errors.New(text))
			return
		}
		o.say(text + "; it is asked for again")
	case isReady(pod):
		if !o.joined[machine] {
			o.joined[machine] = true
			o.say(fmt.Sprintf("%s has joined: pod %s on %s (%d of %d)", machine, pod.Name, pod.Spec.NodeName, len(o.joined), o.total()))
		}
	default:
		o.waits(pod, machine)
	}
}

func (o *observer) total() int {
	total := 0
	for _, g := range o.plan.run.Groups {
		total += g.Machines
	}
	return total
}

// gone is called when a pod was deleted.
func (o *observer) gone(pod *corev1.Pod) {
	if pod.DeletionTimestamp == nil {
		now := metav1.Now()
		pod.DeletionTimestamp = &now
	}
	o.pod(pod)
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// waits says why a pod does not run, and ends the run if it never will.
func (o *observer) waits(pod *corev1.Pod, what string) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			o.sayOnce(pod.Name, fmt.Sprintf("%s waits: %s", what, words(c.Reason, c.Message)))
			return
		}
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		w := s.State.Waiting
		if w == nil || w.Reason == "ContainerCreating" || w.Reason == "PodInitializing" {
			continue
		}
		text := fmt.Sprintf("%s waits: %s", what, words(w.Reason, w.Message))
		switch w.Reason {
		case "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerError":
			o.end(0, errors.New(text))
		default:
			o.sayOnce(pod.Name, text)
		}
		return
	}
}

// cause is why a pod has ended, in the words of the API.
func cause(pod *corev1.Pod) string {
	if text := words(pod.Status.Reason, pod.Status.Message); text != "" {
		return text
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return words(c.Reason, c.Message)
		}
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if t := s.State.Terminated; t != nil && (t.ExitCode != 0 || s.Name == agentContainer) {
			return fmt.Sprintf("its container %s has ended with exit code %d: %s", s.Name, t.ExitCode, words(t.Reason, t.Message))
		}
	}
	return "its pod " + pod.Name + " was deleted"
}

func words(reason, message string) string {
	return strings.TrimSpace(strings.Trim(reason+": "+message, ": \n"))
}

// event is called with warnings of the namespace.
func (o *observer) event(e *corev1.Event) {
	name := e.InvolvedObject.Name
	isOurs := name == o.plan.name("") || strings.HasPrefix(name, o.plan.name("")+"-")
	if e.Type != corev1.EventTypeWarning || !isOurs || e.Reason != "FailedCreate" {
		return // of pods, their status says more
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	text := fmt.Sprintf("%s waits: %s", name, words(e.Reason, e.Message))
	if isHopeless(e.Message) {
		o.end(0, errors.New(text))
		return
	}
	o.sayOnce(name, text)
}

var quota = regexp.MustCompile(`exceeded quota: [^,]+, requested: (.*?), used: .*?, limited: (.*)$`)

// isHopeless reports whether a pod can never be created: it is forbidden for another reason than a
// quota that others use, too.
func isHopeless(message string) bool {
	match := quota.FindStringSubmatch(message)
	if match == nil {
		return strings.Contains(message, "is forbidden") && !strings.Contains(message, "exceeded quota") || strings.Contains(message, "is invalid")
	}
	limits := amounts(match[2])
	for name, requested := range amounts(match[1]) {
		if limit, ok := limits[name]; ok && requested.Cmp(limit) > 0 {
			return true
		}
	}
	return false
}

// amounts parses `requests.cpu=8,pods=1`.
func amounts(text string) map[string]resource.Quantity {
	all := make(map[string]resource.Quantity)
	for entry := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(entry, "=")
		if q, err := resource.ParseQuantity(strings.TrimSpace(value)); err == nil {
			all[strings.TrimSpace(name)] = q
		}
	}
	return all
}

// observe follows pods and events until ctx ends.
func (c *cluster) observe(ctx context.Context, o *observer) {
	pods, events := c.client.CoreV1().Pods(c.namespace), c.client.CoreV1().Events(c.namespace)
	var both sync.WaitGroup
	both.Go(func() {
		follow(ctx, pods.List, pods.Watch, metav1.ListOptions{LabelSelector: runLabel + "=" + o.plan.target.ID}, o.pod, o.gone)
	})
	both.Go(func() {
		follow(ctx, events.List, events.Watch, metav1.ListOptions{FieldSelector: "type=" + corev1.EventTypeWarning}, o.event, func(*corev1.Event) {})
	})
	both.Wait()
}

// follow calls changed and deleted with each state of the selected objects, until ctx ends.
func follow[L, T runtime.Object](
	ctx context.Context, list func(context.Context, metav1.ListOptions) (L, error), open func(context.Context, metav1.ListOptions) (watch.Interface, error),
	selected metav1.ListOptions, changed, deleted func(T),
) {
	options := func(asked metav1.ListOptions) metav1.ListOptions {
		asked.LabelSelector, asked.FieldSelector = selected.LabelSelector, selected.FieldSelector
		return asked
	}
	var kind T
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, asked metav1.ListOptions) (runtime.Object, error) {
				return list(ctx, options(asked))
			},
			WatchFuncWithContext: func(ctx context.Context, asked metav1.ListOptions) (watch.Interface, error) {
				return open(ctx, options(asked))
			},
		},
		ObjectType: kind,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { passOn(object, changed) },
			UpdateFunc: func(_, object any) { passOn(object, changed) },
			DeleteFunc: func(object any) {
				if last, ok := object.(cache.DeletedFinalStateUnknown); ok { // it was deleted while nothing was watched
					object = last.Obj
				}
				passOn(object, deleted)
			},
		},
	})
	controller.RunWithContext(ctx)
}

func passOn[T any](object any, to func(T)) {
	if typed, ok := object.(T); ok {
		to(typed)
	}
}
