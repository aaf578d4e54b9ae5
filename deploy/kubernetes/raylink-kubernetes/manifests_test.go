package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/raylink/raylink/internal/engine/kubernetes/wire"
	"github.com/raylink/raylink/internal/machine"
)

// kinds are the types that manifests are decoded into.
func kinds() map[string]func() any {
	return map[string]func() any{
		"Job": func() any { return new(batchv1.Job) }, "Deployment": func() any { return new(appsv1.Deployment) },
		"StatefulSet": func() any { return new(appsv1.StatefulSet) }, "Secret": func() any { return new(corev1.Secret) },
		"Service": func() any { return new(corev1.Service) }, "ServiceAccount": func() any { return new(corev1.ServiceAccount) },
		"NetworkPolicy": func() any { return new(networkingv1.NetworkPolicy) },
	}
}

// decode decodes manifests strictly: an unknown field is an error.
func decode(t *testing.T, text []byte) []any {
	t.Helper()
	var all []any
	for document := range bytes.SplitSeq(text, []byte("---\n")) {
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		var kind metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal(document, &kind))
		require.Contains(t, kinds(), kind.Kind)
		object := kinds()[kind.Kind]()
		require.NoError(t, yaml.UnmarshalStrict(document, object), "%s", document)
		all = append(all, object)
	}
	return all
}

// kustomized builds a folder with a CA beside it, of which only the names of the files matter.
func kustomized(t *testing.T, folder string) []any {
	t.Helper()
	files := filesys.MakeFsInMemory()
	for _, pattern := range []string{"../base/*.yaml", "../elastic/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range paths {
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, files.WriteFile("/"+strings.TrimPrefix(path, "../"), content))
		}
	}
	for _, name := range pkiFiles() {
		require.NoError(t, files.WriteFile("/base/pki/"+name, []byte(name)))
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, folder)
	require.NoError(t, err)
	text, err := resources.AsYaml()
	require.NoError(t, err)
	return decode(t, text)
}

func pkiFiles() []string {
	return []string{"ca.key", "ca.crt", "tokens.json", "join.token", "admin.token", "secret"}
}

func aRun() *wire.Run {
	return &wire.Run{
		Image: "example/app:1", RaylinkImage: "example/raylink:1", Command: []string{"/app", "--workers", "8"}, JoinSeconds: 600,
		MappedBytes: 1 << 30, GPUResource: "nvidia.com/gpu", Token: "rl1.x.y", PKI: map[string][]byte{"ca.key": []byte("key")},
		Groups: []wire.Group{
			{Name: "trainers", Machines: 1, Resources: machine.Resources{machine.CPU: 1500, machine.Memory: 4 << 30, machine.GPU: 1000}},
			{Name: "workers", Machines: 2, Resources: machine.Resources{"licence": 2000}, Labels: machine.Labels{"group": "workers"}},
		},
	}
}

func aPlan() *plan {
	return &plan{run: aRun(), target: wire.Target{ID: "abcdefgh", Namespace: "ns"}}
}

func generated(t *testing.T, p *plan) []any {
	t.Helper()
	var text bytes.Buffer
	require.NoError(t, p.print(&text))
	return decode(t, text.Bytes())
}

func TestManifestsAreConsistent(t *testing.T) {
	t.Parallel()
	for name, objects := range map[string][]any{"base": kustomized(t, "/base"), "elastic": kustomized(t, "/elastic"), "run": generated(t, aPlan())} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var pods []*corev1.PodTemplateSpec
			secrets := make(map[string]bool)
			for _, object := range objects {
				switch o := object.(type) {
				case *batchv1.Job:
					pods = append(pods, &o.Spec.Template)
				case *appsv1.Deployment:
					pods = append(pods, &o.Spec.Template)
					assert.True(t, matches(o.Spec.Selector.MatchLabels, o.Spec.Template.Labels))
				case *appsv1.StatefulSet:
					pods = append(pods, &o.Spec.Template)
					assert.True(t, matches(o.Spec.Selector.MatchLabels, o.Spec.Template.Labels))
					for _, claim := range o.Spec.VolumeClaimTemplates {
						o.Spec.Template.Spec.Volumes = append(o.Spec.Template.Spec.Volumes, corev1.Volume{Name: claim.Name})
					}
				case *corev1.Secret:
					secrets[o.Name] = true
				}
				if o, ok := object.(metav1.Object); ok {
					assert.Empty(t, validation.IsDNS1035Label(o.GetName()), o.GetName())
				}
			}
			require.NotEmpty(t, pods)
			for _, pod := range pods {
				checkPod(t, pod, secrets)
			}
			for _, object := range objects {
				switch o := object.(type) {
				case *corev1.Service:
					checkService(t, o, pods)
				case *networkingv1.NetworkPolicy:
					for _, pod := range pods {
						assert.True(t, matches(o.Spec.PodSelector.MatchLabels, pod.Labels), "the policy selects all pods")
						assert.True(t, matches(o.Spec.Ingress[0].From[0].PodSelector.MatchLabels, pod.Labels))
					}
				}
			}
		})
	}
}

func matches(selector, labels map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return len(selector) > 0
}

func checkService(t *testing.T, s *corev1.Service, pods []*corev1.PodTemplateSpec) {
	t.Helper()
	selected := 0
	for _, pod := range pods {
		if !matches(s.Spec.Selector, pod.Labels) {
			continue
		}
		selected++
		var ports []string
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, port := range c.Ports {
				ports = append(ports, port.Name)
			}
		}
		for _, port := range s.Spec.Ports {
			assert.Contains(t, ports, port.TargetPort.StrVal, s.Name)
		}
	}
	assert.Equal(t, 1, selected, "the pods of the service %s", s.Name)
}

var variable = regexp.MustCompile(`\$\(([A-Z_]+)\)`)

func checkPod(t *testing.T, pod *corev1.PodTemplateSpec, secrets map[string]bool) {
	t.Helper()
	spec := &pod.Spec
	assert.False(t, *spec.AutomountServiceAccountToken)
	assert.False(t, spec.HostNetwork || spec.HostPID || spec.HostIPC)
	assert.True(t, *spec.SecurityContext.RunAsNonRoot)
	assert.NotZero(t, *spec.SecurityContext.RunAsUser)
	assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, spec.SecurityContext.SeccompProfile.Type)
	assert.Positive(t, *spec.TerminationGracePeriodSeconds)
	volumes := make(map[string]bool)
	for _, v := range spec.Volumes {
		volumes[v.Name] = true
		assert.Nil(t, v.HostPath)
		if v.Secret != nil {
			assert.True(t, secrets[v.Secret.SecretName], "the Secret %s", v.Secret.SecretName)
		}
		if v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory {
			assert.NotNil(t, v.EmptyDir.SizeLimit, "a file system in memory is bounded")
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		s := c.SecurityContext
		assert.False(t, *s.AllowPrivilegeEscalation || *s.Privileged, c.Name)
		assert.True(t, *s.ReadOnlyRootFilesystem, c.Name)
		assert.Equal(t, []corev1.Capability{"ALL"}, s.Capabilities.Drop, c.Name)
		assert.Empty(t, s.Capabilities.Add, c.Name)
		assert.NotEmpty(t, c.Resources.Requests, c.Name)
		var mounted []string
		for _, m := range c.VolumeMounts {
			assert.True(t, volumes[m.Name], "the volume %s of the container %s", m.Name, c.Name)
			mounted = append(mounted, m.MountPath)
		}
		known := make(map[string]bool)
		for _, e := range c.Env {
			for _, use := range variable.FindAllStringSubmatch(e.Value, -1) {
				assert.True(t, known[use[1]], "%s of the container %s uses %s, which has to precede it", e.Name, c.Name, use[1])
			}
			known[e.Name] = true
			assert.NotEqual(t, "RAYLINK_TOKEN", e.Name, "a token is in no environment")
			if e.ValueFrom != nil {
				assert.Nil(t, e.ValueFrom.SecretKeyRef, "a token is in no environment")
				if r := e.ValueFrom.ResourceFieldRef; r != nil {
					assert.Equal(t, c.Name, r.ContainerName)
				}
			}
			if strings.HasPrefix(e.Value, "/") {
				assert.True(t, slices.ContainsFunc(mounted, func(m string) bool { return strings.HasPrefix(e.Value, m+"/") }), "%s=%s is on a volume", e.Name, e.Value)
			}
		}
		for _, arg := range c.Args {
			for _, use := range variable.FindAllStringSubmatch(arg, -1) {
				assert.True(t, known[use[1]], "%s in %q", use[1], arg)
			}
		}
		for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if p != nil {
				assert.Equal(t, corev1.URISchemeHTTPS, p.HTTPGet.Scheme, c.Name)
				assert.True(t, slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == p.HTTPGet.Port.StrVal }), c.Name)
			}
		}
	}
}

func TestMachinesHaveWhatTheirGroupAsksFor(t *testing.T) {
	t.Parallel()
	p := aPlan()
	trainer := p.agents(&p.run.Groups[0], nil)
	c := trainer.Spec.Template.Spec.Containers[0]
	assert.Equal(t, "1500m", c.Resources.Requests.Cpu().String())
	assert.Equal(t, "4Gi", c.Resources.Limits.Memory().String())
	gpus := c.Resources.Limits["nvidia.com/gpu"]
	assert.Equal(t, "1", gpus.String())
	assert.Equal(t, "cpu=$(MACHINE_CPU)m,gpu=1,memory=$(MACHINE_MEMORY)", c.Env[len(c.Env)-1].Value)
	worker := p.agents(&p.run.Groups[1], nil)
	assert.EqualValues(t, 2, *worker.Spec.Completions)
	assert.Equal(t, "licence=2", worker.Spec.Template.Spec.Containers[0].Env[len(worker.Spec.Template.Spec.Containers[0].Env)-1].Value)
}

func TestOnlyBrainMountsTheCA(t *testing.T) {
	t.Parallel()
	pod := aPlan().driver(lease).Spec.Template.Spec
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		has := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "pki" })
		assert.Equal(t, c.Name == brainContainer, has, c.Name)
	}
}

func TestPlanShowsNoSecret(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	p := aPlan()
	require.NoError(t, p.print(&text))
	assert.NotContains(t, text.String(), "cmwxLngueQ") // the token in base64
	assert.Equal(t, "rl1.x.y", p.run.Token)
}

func TestWhatKubernetesWouldRefuse(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*wire.Run){
		"--image is missing": func(r *wire.Run) { r.Image = "" },
		"is too long":        func(r *wire.Run) { r.Groups[0].Name = strings.Repeat("x", 40) },
		"make that smaller":  func(r *wire.Run) { r.MappedBytes = 8 << 30 },
	} {
		p := aPlan()
		change(p.run)
		require.ErrorContains(t, p.check(), want)
	}
	require.NoError(t, aPlan().check())
}

// TestDryRun runs the program as raylink does.
func TestDryRun(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it builds programs")
	}
	bin := t.TempDir()
	for _, build := range [][]string{{"-C", ".", "build", "-o", bin + "/" + wire.Program, "."}, {"-C", "../../..", "build", "-o", bin + "/raylink", "./cmd/raylink"}} {
		output, err := exec.CommandContext(t.Context(), "go", build...).CombinedOutput()
		require.NoError(t, err, "%s", output)
	}
	cmd := exec.CommandContext(t.Context(), bin+"/raylink", "run", "--on", "kubernetes", "--dry-run", "--image", "app:1",
		"--group", "workers:machines=2,cpus=0.5", "--", "/app", "--n", "3")
	text, err := cmd.Output()
	require.NoError(t, err)
	objects := decode(t, text)
	require.Len(t, objects, 6)
	assert.Equal(t, []string{"--n", "3"}, objects[0].(*batchv1.Job).Spec.Template.Spec.Containers[0].Args)
	agents := objects[5].(*batchv1.Job).Spec.Template.Spec.Containers[0]
	assert.Subset(t, agents.Args, []string{"--label", "group=workers"})
	assert.Equal(t, "500m", agents.Resources.Requests.Cpu().String())
}
