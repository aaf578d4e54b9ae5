package runtime

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
)

// ownOptions are the options that a process launched for a node does not take over, and why.
var ownOptions = map[string]string{
	"Types":              "functions: the program gives Init the same types in every process",
	"systemTypes":        "functions: the front door sets them in every process",
	"Compression":        "the session with Brain distributes the setting of Brain's process",
	"Logger":             "an interface: the program gives Init its own in every process",
	"KeepRuns":           "only the process that begins a run removes older ones",
	"Output":             "a function: a launched process forwards its output to its launcher",
	"Interceptors":       "functions: the program gives Init its own in every process",
	"Events":             "functions: the program gives Init its own in every process",
	"ClientInterceptors": "functions: the program gives Init its own in every process",
	"BusyPoll":           "of the process; RAYLINK_BUSY_POLL is inherited with the environment",
	"HeapFloor":          "of the process; RAYLINK_HEAP_FLOOR is inherited with the environment",
	"Machine":            "a launched process describes no machine",
	"alone":              "a launched process has the Brain that it inherits",
	"listens":            "a launched process has the address that it inherits",
	"invalid":            "errors of the environment, which the launcher has returned",
}

// TestEveryOptionIsInheritedOrListed: a new option is a field of InheritedOptions, or it is listed
// above with the reason why it is none.
func TestEveryOptionIsInheritedOrListed(t *testing.T) {
	t.Parallel()
	inherited := reflect.TypeFor[InheritedOptions]()
	for f := range reflect.TypeFor[Options]().Fields() {
		if f.Type == inherited {
			continue
		}
		require.Contains(t, ownOptions, f.Name, "the option reaches no process of a node: is it to be a field of InheritedOptions?")
	}
	for f := range inherited.Fields() {
		require.True(t, f.IsExported(), "%s does not travel to a child: it is not exported", f.Name)
		require.NotContains(t, ownOptions, f.Name)
	}
}

// TestChildHasInheritedOptions sets every inherited option of a launcher, and compares them with
// those of the process that it launches. Only the ports differ, for each process needs its own.
func TestChildHasInheritedOptions(t *testing.T) {
	t.Parallel()
	h := &Host{}
	options := reflect.ValueOf(&h.options.InheritedOptions).Elem()
	for i := range options.NumField() {
		setOption(t, options.Type().Field(i).Name, options.Field(i))
	}
	payload, err := h.launchPayload(&nodev1.NodeRecord{}, NodeType{service: &Service{}}, nil)
	require.NoError(t, err)
	var p launchPayload
	require.NoError(t, json.Unmarshal(payload, &p)) //nolint:musttag // as in childLife.start
	child := Options{InheritedOptions: InheritedOptions{Brain: "its own"}}
	child.inherit(&p)

	want := h.options.InheritedOptions
	want.Listen, want.Advertise = "listen:0", "advertise:0"
	require.Equal(t, want, child.InheritedOptions)
}

// setOption sets an option to a value that is not its default.
func setOption(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = map[string]string{"Listen": "listen:1", "Advertise": "advertise:2"}[name]
		if *p == "" {
			*p = "of " + name
		}
	case *bool:
		*p = true
	case *int:
		*p = 7
	case *time.Duration:
		*p = time.Second + time.Duration(len(name))
	case *[]string:
		*p = []string{"of " + name}
	default:
		require.Failf(t, "an option of another type", "%s is a %s: set it here", name, v.Type())
	}
}
