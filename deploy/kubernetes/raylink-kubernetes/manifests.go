package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
	"github.com/raylink/raylink/internal/machine"
)

const (
	// runLabel has the id of the run on all of its objects, and partLabel what a pod is.
	runLabel   = "raylink.dev/run"
	partLabel  = "raylink.dev/part"
	groupLabel = "raylink.dev/group"
	partDriver = "driver"
	partAgent  = "agent"

	nameLabel, managedLabel = "app.kubernetes.io/name", "app.kubernetes.io/managed-by"

	// The containers of the driver's pod.
	brainContainer  = "brain"
	awaitContainer  = "await-machines"
	driverContainer = "driver"
	agentContainer  = "agent"

	brainPort, agentPort = 6800, 6801
	// user is that of the images of distroless, too. Any other one does.
	user = 65532

	stateDir  = "/var/lib/raylink"
	tokenDir  = "/etc/raylink/token" //nolint:gosec // where it is mounted
	pkiDir    = "/etc/raylink/pki"
	tokenFile = "join.token"
	tokenPath = tokenDir + "/" + tokenFile

	// graceful is longer than twice the time that nodes have to finish their calls.
	graceful int64 = 30
	// lease is how long, in seconds, a run that is not detached outlives its submitting command.
	lease int64 = 600
	// keepAttached and keepDetached are how long, in seconds, a run that has ended is kept: until
	// the submitting command has seen it, and for `raylink attach`.
	keepAttached int32 = 60
	keepDetached int32 = 24 * 60 * 60
	// leaveAfter is how long agents wait for a Brain that was there: it ends with the driver.
	leaveAfter = "30s"
)

// plan is the objects of a run.
type plan struct {
	run    *wire.Run
	target wire.Target
}

func (p *plan) name(suffix string) string {
	return strings.TrimSuffix("raylink-"+p.target.ID+"-"+suffix, "-")
}

// brainAddress is where the run's pods find Brain.
func (p *plan) brainAddress() string { return p.name(brainContainer) + ":" + strconv.Itoa(brainPort) }

func (p *plan) meta(name string, owner *metav1.OwnerReference, labels map[string]string) metav1.ObjectMeta {
	all := map[string]string{nameLabel: "raylink", managedLabel: manager, runLabel: p.target.ID}
	maps.Copy(all, labels)
	meta := metav1.ObjectMeta{Name: name, Namespace: p.target.Namespace, Labels: all}
	if owner != nil {
		meta.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	return meta
}

// selector returns the labels of the run's pods, and of those with more.
func (p *plan) selector(more map[string]string) map[string]string {
	selected := map[string]string{runLabel: p.target.ID}
	maps.Copy(selected, more)
	return selected
}

// owned returns all objects but the driver's job, in the order in which they are applied. That job
// owns them: with it, they are deleted.
func (p *plan) owned(owner *metav1.OwnerReference) []runtime.Object {
	objects := make([]runtime.Object, 0, 4+len(p.run.Groups))
	objects = append(objects,
		p.secret("token", owner, map[string][]byte{tokenFile: []byte(p.run.Token)}), p.secret("pki", owner, p.run.PKI),
		p.service(owner), p.policy(owner))
	for i := range p.run.Groups {
		objects = append(objects, p.agents(&p.run.Groups[i], owner))
	}
	return objects
}

func ownerOf(job *batchv1.Job) *metav1.OwnerReference {
	yes := true
	return &metav1.OwnerReference{
		APIVersion: "batch/v1", Kind: "Job", Name: job.Name, UID: job.UID, Controller: &yes, BlockOwnerDeletion: &yes,
	}
}

// secret is a Secret that nothing but its deletion changes.
func (p *plan) secret(name string, owner *metav1.OwnerReference, data map[string][]byte) *corev1.Secret {
	yes := true
	return &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: p.meta(p.name(name), owner, nil),
		Type: corev1.SecretTypeOpaque, Immutable: &yes, Data: data,
	}
}

// service finds Brain before the driver's pod is ready, which it is only once its program runs.
func (p *plan) service(owner *metav1.OwnerReference) *corev1.Service {
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: p.meta(p.name(brainContainer), owner, nil),
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, PublishNotReadyAddresses: true, Selector: p.selector(map[string]string{partLabel: partDriver}),
			Ports: []corev1.ServicePort{{Name: brainContainer, Port: brainPort, TargetPort: intstr.FromString(brainContainer), Protocol: corev1.ProtocolTCP}},
		},
	}
}

// policy admits connections to the run's pods from each other alone.
func (p *plan) policy(owner *metav1.OwnerReference) *networkingv1.NetworkPolicy {
	ours := metav1.LabelSelector{MatchLabels: p.selector(nil)}
	return &networkingv1.NetworkPolicy{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}, ObjectMeta: p.meta(p.name(""), owner, nil),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: ours, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &ours}}}},
		},
	}
}

// driver is the job of the program, with Brain beside it: Brain ends with it, and the program finds
// all machines. deadline is in seconds since the start of the job; 0 for none.
func (p *plan) driver(deadline int64) *batchv1.Job {
	none, keep := int32(0), keepAttached
	var active *int64
	if p.run.Detach {
		keep = keepDetached
	} else {
		active = &deadline
	}
	labels := p.selector(map[string]string{partLabel: partDriver})
	always := corev1.ContainerRestartPolicyAlways
	machines := 0
	for _, g := range p.run.Groups {
		machines += g.Machines
	}
	brain := p.container(brainContainer, p.run.RaylinkImage,
		[]string{"raylink", "brain", "--pki", pkiDir, "--listen", "$(POD_IP):" + strconv.Itoa(brainPort), "--output", "json"}, brainPort)
	brain.RestartPolicy = &always
	brain.StartupProbe = probe("/readyz", brainContainer, 2, 60)
	brain.VolumeMounts = append(brain.VolumeMounts, corev1.VolumeMount{Name: "pki", MountPath: pkiDir, ReadOnly: true})
	await := p.client(p.container(awaitContainer, p.run.RaylinkImage, []string{
		"raylink", "machines", "--wait", strconv.Itoa(machines), "--timeout", strconv.FormatInt(p.run.JoinSeconds, 10) + "s",
	}, 0))
	program := p.client(p.container(driverContainer, p.run.Image, p.run.Command, 0))
	for _, c := range []*corev1.Container{&brain, &program} {
		// The driver's pod offers what it has asked for, not all that its node has.
		c.Env = append(c.Env, p.resourcesEnv(c.Name, small())...)
	}
	pod := p.pod(labels)
	pod.Spec.Volumes = append(pod.Spec.Volumes, secretVolume("pki", p.name("pki")))
	pod.Spec.InitContainers = []corev1.Container{brain, await}
	pod.Spec.Containers = []corev1.Container{program}
	return &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"}, ObjectMeta: p.meta(p.name(""), nil, map[string]string{partLabel: partDriver}),
		Spec: batchv1.JobSpec{BackoffLimit: &none, ActiveDeadlineSeconds: active, TTLSecondsAfterFinished: &keep, Template: pod},
	}
}

// agents is the job of the machines of a group.
func (p *plan) agents(g *wire.Group, owner *metav1.OwnerReference) *batchv1.Job {
	machines, restarts := int32(g.Machines), int32(p.run.Restarts) //nolint:gosec // at most 8192, see engine.ParseGroup
	indexed := batchv1.IndexedCompletion
	labels := p.selector(map[string]string{partLabel: partAgent, groupLabel: g.Name})
	texts := g.Labels.Texts()
	args := make([]string, 0, 10+2*len(texts))
	args = append(args, "raylink", "agent", "--name", g.Name+"-$(MACHINE_INDEX)", "--listen", "$(POD_IP):"+strconv.Itoa(agentPort), "--leave-after", leaveAfter,
		"--output", "json")
	for _, label := range texts {
		args = append(args, "--label", label)
	}
	agent := p.client(p.container(agentContainer, p.run.RaylinkImage, args, agentPort))
	agent.Env = append(agent.Env, fieldEnv("MACHINE_INDEX", "metadata.annotations['"+batchv1.JobCompletionIndexAnnotation+"']"))
	agent.Env = append(agent.Env, p.resourcesEnv(agentContainer, g.Resources)...)
	asked := small() // what the group leaves open
	maps.Copy(asked, g.Resources)
	agent.Resources = p.requirements(asked)
	if _, ok := g.Resources[machine.Memory]; !ok {
		delete(agent.Resources.Limits, corev1.ResourceMemory)
	}
	agent.ReadinessProbe = probe("/readyz", agentContainer, 2, 3)
	agent.LivenessProbe = probe("/livez", agentContainer, 20, 6)
	agent.StartupProbe = probe("/livez", agentContainer, 2, int32(p.run.JoinSeconds/2)+1) //nolint:gosec // hours at most: an agent listens once it has joined
	pod := p.pod(labels)
	pod.Spec.Containers = []corev1.Container{agent}
	return &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: p.meta(p.name("agents-"+g.Name), owner, map[string]string{partLabel: partAgent, groupLabel: g.Name}),
		Spec: batchv1.JobSpec{
			CompletionMode: &indexed, Completions: &machines, Parallelism: &machines, BackoffLimit: &restarts, Template: pod,
		},
	}
}

// pod has what all pods have in common.
func (p *plan) pod(labels map[string]string) corev1.PodTemplateSpec {
	no, yes, id, grace := false, true, int64(user), graceful
	size := resource.NewQuantity(p.run.MappedBytes, resource.BinarySI)
	all := map[string]string{nameLabel: "raylink", managedLabel: manager}
	maps.Copy(all, labels)
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: all},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &id, RunAsGroup: &id, FSGroup: &id,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Volumes: []corev1.Volume{
				// Mapped files are in the data directory. /dev/shm of a container has 64 MiB.
				{Name: "state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: size}}},
				{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				secretVolume("token", p.name("token")),
			},
		},
	}
}

func secretVolume(name, secret string) corev1.Volume {
	mode := int32(0o440)
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret, DefaultMode: &mode}}}
}

// container has what all containers have in common. Each has directories of its own, although the
// pod is one machine.
func (p *plan) container(name, image string, command []string, port int32) corev1.Container {
	no, yes := false, true
	c := corev1.Container{
		Name: name, Image: image, Command: command[:1], Args: command[1:],
		Env: []corev1.EnvVar{
			fieldEnv("POD_IP", "status.podIP"), fieldEnv("RAYLINK_MACHINE", "metadata.uid"),
			{Name: "RAYLINK_DATA", Value: stateDir + "/" + name + "/data"},
			{Name: "RAYLINK_RUNTIME_DIR", Value: stateDir + "/run/raylink"},
			{Name: wire.RunVariable, Value: p.target.ID},
		},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, Privileged: &no, ReadOnlyRootFilesystem: &yes, RunAsNonRoot: &yes,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Resources:                p.requirements(small()),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		VolumeMounts:             []corev1.VolumeMount{{Name: "state", MountPath: stateDir}, {Name: "tmp", MountPath: "/tmp"}},
	}
	c.Resources.Limits = nil // Brain, and a program of unknown needs
	if port != 0 {
		c.Ports = []corev1.ContainerPort{{Name: name, ContainerPort: port, Protocol: corev1.ProtocolTCP}}
	}
	return c
}

// small is what Brain and the driver ask for.
func small() machine.Resources {
	return machine.Resources{machine.CPU: machine.Unit / 4, machine.Memory: 256 << 20}
}

// client makes a container one of a process that joins Brain.
func (p *plan) client(c corev1.Container) corev1.Container {
	c.Env = append(c.Env, corev1.EnvVar{Name: "RAYLINK_BRAIN", Value: p.brainAddress()}, corev1.EnvVar{Name: "RAYLINK_TOKEN_FILE", Value: tokenPath})
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "token", MountPath: tokenDir, ReadOnly: true})
	return c
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

func resourceEnv(container, name, path, divisor string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{
		ContainerName: container, Resource: path, Divisor: resource.MustParse(divisor),
	}}}
}

// resourcesEnv makes the machine's resources of the container's: those that the downward API knows
// by that, and others as they were asked for.
func (p *plan) resourcesEnv(container string, has machine.Resources) []corev1.EnvVar {
	var env []corev1.EnvVar
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(has)) {
		switch name {
		case machine.CPU:
			env = append(env, resourceEnv(container, "MACHINE_CPU", "requests.cpu", "1m"))
			texts = append(texts, "cpu=$(MACHINE_CPU)m")
		case machine.Memory:
			env = append(env, resourceEnv(container, "MACHINE_MEMORY", "requests.memory", "1"))
			texts = append(texts, "memory=$(MACHINE_MEMORY)")
		default:
			texts = append(texts, machine.Resources{name: has[name]}.String())
		}
	}
	if texts == nil {
		return nil
	}
	return append(env, corev1.EnvVar{Name: "RAYLINK_RESOURCES", Value: strings.Join(texts, ",")})
}

// requirements are the requests of a container. Memory is a limit as well, since what is beyond it
// could be used only as long as other pods don't; GPUs must be one.
func (p *plan) requirements(has machine.Resources) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	for name, amount := range has {
		switch name {
		case machine.CPU:
			r.Requests[corev1.ResourceCPU] = *resource.NewMilliQuantity(amount, resource.DecimalSI)
		case machine.Memory:
			r.Requests[corev1.ResourceMemory] = *resource.NewQuantity(amount, resource.BinarySI)
			r.Limits[corev1.ResourceMemory] = r.Requests[corev1.ResourceMemory]
		case machine.GPU:
			if amount > 0 {
				r.Limits[corev1.ResourceName(p.run.GPUResource)] = *resource.NewQuantity(amount/machine.Unit, resource.DecimalSI)
			}
		default: // the user's own, of which Kubernetes knows nothing
		}
	}
	return r
}

// probe asks a host about itself. A kubelet does not verify certificates.
func probe(path, port string, seconds, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Scheme: corev1.URISchemeHTTPS, Path: path, Port: intstr.FromString(port),
		}},
		PeriodSeconds: seconds, FailureThreshold: failures, TimeoutSeconds: 2,
	}
}

// check refuses what would not be valid in Kubernetes, in words of the command line.
func (p *plan) check() error {
	switch {
	case p.run.Image == "":
		return fmt.Errorf("--image is missing: the container image that has %s", p.run.Command[0])
	case p.run.MappedBytes <= 0:
		return fmt.Errorf("--mapped-size is %d bytes: it must be more", p.run.MappedBytes)
	}
	for _, g := range p.run.Groups {
		if name := p.name("agents-" + g.Name); len(name) > maxJobName {
			return fmt.Errorf("the name of the group %s is too long: the job %s may have %d characters", g.Name, name, maxJobName)
		}
		if memory := g.Resources[machine.Memory]; memory != 0 && memory < p.run.MappedBytes {
			return fmt.Errorf("the group %s has %s of memory, which --mapped-size (%d bytes) is a part of: make that smaller",
				g.Name, machine.Resources{machine.Memory: memory}, p.run.MappedBytes)
		}
	}
	return nil
}

// maxJobName leaves room for the index and the suffix of the pods of an indexed job.
const maxJobName = 52
