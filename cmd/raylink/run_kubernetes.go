package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/raylink/raylink/internal/engine"
	"github.com/raylink/raylink/internal/engine/kubernetes"
	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
)

const kubernetesEngine = "kubernetes"

// kubernetesFlags are the flags of `raylink run` for Kubernetes.
type kubernetesFlags struct {
	image, raylinkImage, namespace, kubeconfig, context, gpu string
	mapped                                                   byteSize
}

func (f *kubernetesFlags) add(cmd *cobra.Command) {
	f.mapped = 1 << 30
	flags := cmd.Flags()
	flags.StringVar(&f.image, "image", "", "kubernetes: the image that has PROGRAM")
	flags.StringVar(&f.raylinkImage, "raylink-image", "", "kubernetes: the image of Brain and agents, with raylink in its PATH (default: --image)")
	flags.StringVar(&f.namespace, "namespace", "", "kubernetes: the namespace (default: that of the context)")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubernetes: the file that kubectl would use (KUBECONFIG)")
	flags.StringVar(&f.context, "context", "", "kubernetes: the context in that file (default: the current one)")
	flags.StringVar(&f.gpu, "gpu-resource", "nvidia.com/gpu", "kubernetes: the resource that is a GPU")
	flags.Var(&f.mapped, "mapped-size", "kubernetes: the memory of each machine for mapped files, a part of --memory")
}

// isInRun reports whether this process is in a pod of a run: then the run's Brain is used.
func isInRun() bool {
	return os.Getenv("KUBERNETES_SERVICE_HOST") != "" && os.Getenv(wire.RunVariable) != "" && os.Getenv("RAYLINK_BRAIN") != ""
}

// runInRun replaces this process by a program that joins the run's Brain, by the pod's environment.
func runInRun(command []string) error {
	program, err := exec.LookPath(command[0])
	if err == nil {
		err = syscall.Exec(program, command, os.Environ())
	}
	return &localError{fmt.Errorf("the program to run: %w", err)}
}

// runOnKubernetes runs a program in a cluster, or leaves the run there.
func (a *app) runOnKubernetes(ctx context.Context, f *runFlags, groups []engine.Group, command []string) (err error) {
	if f.checkpoint != "" || f.listen != "" {
		return usagef("--checkpoint and --listen have no meaning with --on kubernetes: Brain and the program are in a pod")
	}
	program, err := kubernetes.Find()
	if err != nil {
		return &localError{err}
	}
	k := &f.kubernetes
	run := &wire.Run{
		Image: k.image, RaylinkImage: k.raylinkImage, Command: command, Groups: kubernetes.Groups(groups), Restarts: f.restarts,
		JoinSeconds: max(1, int64(f.join.Seconds())), MappedBytes: int64(k.mapped), GPUResource: k.gpu, Detach: f.detach, //nolint:gosec // a size of memory
	}
	if run.RaylinkImage == "" {
		run.RaylinkImage = run.Image
	}
	request := &wire.Request{Operation: wire.Start, Run: run, Target: wire.Target{
		ID: engine.NewID(), Kubeconfig: k.kubeconfig, Context: k.context, Namespace: k.namespace,
	}}
	if f.dryRun {
		request.Operation = wire.Plan
	} else {
		directory, err := os.MkdirTemp("", "raylink-kubernetes-")
		if err != nil {
			return &localError{err}
		}
		run.PKI, run.Token, err = kubernetes.NewPKI(filepath.Join(directory, "pki"))
		if err = errors.Join(err, os.RemoveAll(directory)); err != nil {
			return &localError{err}
		}
	}
	result, err := kubernetes.Call(ctx, program, request, a.out, a.err)
	if err == nil && result.Error != "" {
		err = fmt.Errorf("kubernetes: %s", result.Error)
	}
	switch {
	case err != nil:
		return &localError{err}
	case result.Running:
		return a.recordKubernetes(result, command)
	case result.Exit != 0:
		return &exitError{result.Exit}
	}
	return nil
}

// recordKubernetes records a run that was left in a cluster, and prints its id.
func (a *app) recordKubernetes(result *wire.Result, command []string) error {
	job, err := kubernetes.NewJob(result.Target)
	if err != nil {
		return &localError{err}
	}
	all, err := records()
	if err != nil {
		return err
	}
	record := &engine.Record{ID: result.Target.ID, Engine: kubernetesEngine, Command: command, Started: time.Now(), State: engine.Running, Job: job}
	if err := all.Create(record); err != nil {
		return &localError{err}
	}
	return a.printLine(record.ID)
}
