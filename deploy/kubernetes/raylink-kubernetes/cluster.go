package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
)

// manager is the field manager of server-side apply.
const manager = "raylink"

// oldest is the first minor version of Kubernetes 1 with containers that run beside a job's own.
const oldest = 29

// cluster is a namespace of an API server.
type cluster struct {
	client    kubernetes.Interface
	namespace string
}

// connect finds the API server as kubectl does, and sets the namespace of the target.
func connect(target *wire.Target) (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = target.Kubeconfig
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: target.Context})
	rest, err := config.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the cluster: %w", err)
	}
	rest.UserAgent = wire.Program
	if target.Namespace == "" {
		if target.Namespace, _, err = config.Namespace(); err != nil {
			return nil, fmt.Errorf("finding the namespace: %w", err)
		}
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, err
	}
	return &cluster{client, target.Namespace}, nil
}

// checkVersion refuses a cluster that would ignore a part of the manifests.
func (c *cluster) checkVersion() error {
	version, err := c.client.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("asking the API server for its version: %w", err)
	}
	minor, err := strconv.Atoi(strings.TrimRight(version.Minor, "+"))
	if err == nil && version.Major == "1" && minor < oldest {
		return fmt.Errorf("the cluster has Kubernetes %s: 1.%d or later is needed", version.GitVersion, oldest)
	}
	return nil
}

// apply applies an object by server-side apply. Fields that another manager has set are a conflict.
func (c *cluster) apply(ctx context.Context, object runtime.Object, dryRun bool) (uid types.UID, err error) {
	text, err := json.Marshal(object)
	if err != nil {
		return "", err
	}
	force := false
	options := metav1.PatchOptions{FieldManager: manager, Force: &force}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	var kind, name string
	var applied metav1.Object
	switch o := object.(type) {
	case *batchv1.Job:
		kind, name = "job", o.Name
		applied, err = c.client.BatchV1().Jobs(c.namespace).Patch(ctx, name, types.ApplyPatchType, text, options)
	case *corev1.Secret:
		kind, name = "secret", o.Name
		applied, err = c.client.CoreV1().Secrets(c.namespace).Patch(ctx, name, types.ApplyPatchType, text, options)
	case *corev1.Service:
		kind, name = "service", o.Name
		applied, err = c.client.CoreV1().Services(c.namespace).Patch(ctx, name, types.ApplyPatchType, text, options)
	case *networkingv1.NetworkPolicy:
		kind, name = "network policy", o.Name
		applied, err = c.client.NetworkingV1().NetworkPolicies(c.namespace).Patch(ctx, name, types.ApplyPatchType, text, options)
	default:
		return "", fmt.Errorf("no object of a run: %T", object)
	}
	if err != nil {
		return "", fmt.Errorf("applying the %s %s: %w", kind, name, err)
	}
	return applied.GetUID(), nil
}

// deletion bounds how long all objects of a run may take to be gone; graceful is a part of it.
const deletion = 2 * time.Minute

// remove deletes the job of the driver, and what it owns with it. It returns once all is gone.
func (c *cluster) remove(ctx context.Context, name string, uid types.UID, wait time.Duration) error {
	foreground := metav1.DeletePropagationForeground
	options := metav1.DeleteOptions{PropagationPolicy: &foreground}
	if uid != "" {
		options.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	deleted := false
	for {
		var err error
		if !deleted {
			err = c.client.BatchV1().Jobs(c.namespace).Delete(ctx, name, options)
			deleted = err == nil
		} else {
			_, err = c.client.BatchV1().Jobs(c.namespace).Get(ctx, name, metav1.GetOptions{})
		}
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case apierrors.IsForbidden(err), apierrors.IsConflict(err), apierrors.IsUnauthorized(err):
			return fmt.Errorf("deleting the job %s and what belongs to it: %w", name, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("deleting the job %s and what belongs to it: not gone within %v: %w", name, wait, errors.Join(err, ctx.Err()))
		}
	}
}

// poll is how often the deletion of a run is looked up.
const poll = 250 * time.Millisecond
