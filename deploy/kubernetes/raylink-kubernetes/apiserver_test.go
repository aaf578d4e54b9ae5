package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// apiServer is as much of the API as the program uses: apply, merge patches, get, list, watch,
// logs, and foreground deletion, by which what the job owns is deleted too.
type apiServer struct {
	t   *testing.T
	url string

	mu       sync.Mutex
	objects  map[string]map[string]any // by path
	version  int
	changed  chan struct{} // closed by each change
	watched  []change
	log      string
	minor    string
	requests []string
	// refuse returns a status and a message for requests that are to fail.
	refuse func(method, path string, dryRun bool) (int, string)
}

type change struct {
	Type   string         `json:"type"`
	Object map[string]any `json:"object"`
	path   string
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	f := &apiServer{t: t, objects: make(map[string]map[string]any), changed: make(chan struct{}), minor: "33"}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.url = server.URL
	return f
}

func (f *apiServer) cluster() *cluster {
	client, err := kubernetes.NewForConfig(&rest.Config{Host: f.url})
	require.NoError(f.t, err)
	return &cluster{client, "ns"}
}

// set stores an object, and notifies watchers. The caller holds the lock.
func (f *apiServer) set(path string, object map[string]any) {
	f.version++
	object["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(f.version)
	verb := "MODIFIED"
	if f.objects[path] == nil {
		verb = "ADDED"
	}
	f.objects[path] = object
	f.notify(change{verb, object, path})
}

func (f *apiServer) notify(c change) {
	f.watched = append(f.watched, c)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *apiServer) remove(path string) {
	if object := f.objects[path]; object != nil {
		delete(f.objects, path)
		f.notify(change{"DELETED", object, path})
	}
}

// put stores an object of a test.
func (f *apiServer) put(path string, object any) {
	text, err := json.Marshal(object)
	require.NoError(f.t, err)
	var m map[string]any
	require.NoError(f.t, json.Unmarshal(text, &m))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(path, m)
}

func (f *apiServer) putPod(pod *corev1.Pod) {
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	pod.Namespace = "ns"
	f.put("/api/v1/namespaces/ns/pods/"+pod.Name, pod)
}

// left are the paths of what is there.
func (f *apiServer) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for path := range f.objects {
		if !strings.Contains(path, "/events/") {
			all = append(all, path)
		}
	}
	return all
}

func (f *apiServer) made(method, part string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.HasPrefix(r, method) && strings.Contains(r, part) {
			return true
		}
	}
	return false
}

func status(w http.ResponseWriter, code int, message string) {
	reasons := map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound, 409: metav1.StatusReasonConflict, 422: metav1.StatusReasonInvalid}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: int32(code), Message: message, Reason: reasons[code],
	})
}

func reply(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object)
}

func (f *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dryRun := r.URL.Query().Get("dryRun") != ""
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
	refuse := f.refuse
	f.mu.Unlock()
	if refuse != nil {
		if code, message := refuse(r.Method, r.URL.Path, dryRun); code != 0 {
			status(w, code, message)
			return
		}
	}
	switch {
	case r.URL.Path == "/version":
		reply(w, map[string]string{"major": "1", "minor": f.minor, "gitVersion": "v1." + f.minor + ".0"})
	case strings.HasSuffix(r.URL.Path, "/log"):
		f.mu.Lock()
		defer f.mu.Unlock()
		_, _ = io.WriteString(w, f.log)
	case r.Method == http.MethodPatch:
		f.patch(w, r, dryRun)
	case r.Method == http.MethodDelete:
		f.delete(w, r)
	case r.URL.Query().Get("sendInitialEvents") != "": // as a server without the feature WatchList does
		status(w, http.StatusUnprocessableEntity, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
	case r.URL.Query().Get("watch") != "":
		f.watch(w, r)
	default:
		f.get(w, r)
	}
}

func (f *apiServer) patch(w http.ResponseWriter, r *http.Request, dryRun bool) {
	body, err := io.ReadAll(r.Body)
	var object map[string]any
	if err == nil {
		err = yaml.Unmarshal(body, &object)
	}
	if err != nil {
		status(w, 400, err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.objects[r.URL.Path]
	if r.Header.Get("Content-Type") == string(types.MergePatchType) {
		if before == nil {
			status(w, 404, "not found")
			return
		}
		if object["spec"].(map[string]any)["suspend"] == true {
			for path, pod := range f.objects {
				if strings.Contains(path, "/pods/") && strings.Contains(fmt.Sprint(pod["metadata"]), partLabel+":"+partDriver) {
					f.remove(path)
				}
			}
		}
		reply(w, before)
		return
	}
	if r.URL.Query().Get("fieldManager") != manager || r.URL.Query().Get("force") != "false" {
		status(w, 400, "apply needs a field manager, and is not forced")
		return
	}
	meta := object["metadata"].(map[string]any)
	meta["uid"] = "uid-" + meta["name"].(string)
	if !dryRun {
		f.set(r.URL.Path, object)
	}
	reply(w, object)
}

func (f *apiServer) delete(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	object := f.objects[r.URL.Path]
	if object == nil {
		status(w, 404, "not found")
		return
	}
	uid := object["metadata"].(map[string]any)["uid"]
	for path, other := range f.objects {
		owners, _ := other["metadata"].(map[string]any)["ownerReferences"].([]any)
		if len(owners) == 1 && owners[0].(map[string]any)["uid"] == uid || strings.Contains(path, "/pods/") {
			f.remove(path)
		}
	}
	f.remove(r.URL.Path)
	reply(w, metav1.Status{Status: "Success"})
}

func (f *apiServer) get(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if object := f.objects[r.URL.Path]; object != nil {
		reply(w, object)
		return
	}
	if !strings.HasSuffix(r.URL.Path, "/pods") && !strings.HasSuffix(r.URL.Path, "/events") {
		status(w, 404, "not found")
		return
	}
	items := []any{}
	for path, object := range f.objects {
		if strings.HasPrefix(path, r.URL.Path+"/") && selects(r, object) {
			items = append(items, object)
		}
	}
	reply(w, map[string]any{"metadata": map[string]any{"resourceVersion": strconv.Itoa(len(f.watched))}, "items": items})
}

func selects(r *http.Request, object map[string]any) bool {
	labels, _ := object["metadata"].(map[string]any)["labels"].(map[string]any)
	selector := r.URL.Query().Get("labelSelector")
	for term := range strings.SplitSeq(selector, ",") {
		key, value, _ := strings.Cut(term, "=")
		if selector != "" && labels[key] != value {
			return false
		}
	}
	return true
}

// watch sends the changes after those that the list has had: its version is their number.
func (f *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flusher := w.(http.Flusher)
	flusher.Flush()
	var from int
	_, _ = fmt.Sscan(r.URL.Query().Get("resourceVersion"), &from)
	for {
		f.mu.Lock()
		var news []json.RawMessage
		for ; from < len(f.watched); from++ {
			if c := f.watched[from]; strings.HasPrefix(c.path, r.URL.Path+"/") && selects(r, c.Object) {
				text, _ := json.Marshal(c)
				news = append(news, text)
			}
		}
		changed := f.changed
		f.mu.Unlock()
		for _, text := range news {
			_, _ = w.Write(append(text, '\n'))
		}
		flusher.Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// await waits until something is there.
func (f *apiServer) await(part string) {
	f.t.Helper()
	require.Eventually(f.t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for path := range f.objects {
			if strings.Contains(path, part) {
				return true
			}
		}
		return false
	}, 10*time.Second, 5*time.Millisecond, part)
}

// agentPod is a pod of the group workers.
func agentPod(name, index string, state corev1.PodStatus) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{runLabel: "abcdefgh", partLabel: partAgent, groupLabel: "workers"},
		Annotations: map[string]string{batchv1.JobCompletionIndexAnnotation: index},
	}, Spec: corev1.PodSpec{NodeName: "node-1"}, Status: state}
}

func driverPod(state corev1.PodStatus) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "raylink-abcdefgh-x1", Labels: map[string]string{runLabel: "abcdefgh", partLabel: partDriver}}, Status: state}
}

func ready() corev1.PodStatus {
	return corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
}

func programEnded(code int32) corev1.PodStatus {
	return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
		Name: driverContainer, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: "Error"}},
	}}}
}
