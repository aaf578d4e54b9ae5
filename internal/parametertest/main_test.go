package parametertest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/raylink/raylink"
)

var (
	kills = flag.Int("kills", 8, "how many times TestAcknowledgedPushesSurviveKillsOfTheCaptain kills the captain")
	seed  = flag.Uint64("seed", 0, "the seed of random choices; 0 chooses one")
)

const (
	// role is the environment variable that makes this binary a Brain or a machine.
	role = "RAYLINK_TEST_PARAMETERS"
	// listen is that of the address at which Brain listens.
	listen      = "RAYLINK_TEST_PARAMETERS_LISTEN"
	brainRole   = "brain"
	machineRole = "machine"
)

func TestMain(m *testing.M) {
	// The race detector delays the exit of every process by a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var err error
	switch what := os.Getenv(role); what {
	case "":
		goleak.VerifyTestMain(m)
		return
	case brainRole:
		err = serveBrain()
	default:
		err = serveMachine()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveBrain is the main function of Brain's process, and of those of its own nodes.
func serveBrain() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	return raylink.ServeBrain(ctx, raylink.BrainOptions{
		Listen: os.Getenv(listen),
		Serving: func(string, string, string) {
			// The process was not launched as a node's, so its input is the test's.
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				stop()
			}()
			fmt.Println("serving")
		},
	})
}

// order is what a test has a machine do: a line of JSON at its standard input.
type order struct {
	// ID is repeated in the answer.
	ID int    `json:"id"`
	Do string `json:"do"`
	// Captain is the path of the captain; the default is that of the system.
	Captain string `json:"captain"`
	Tag     string `json:"tag"`
	// Token identifies a push. It and the tag determine the parameters.
	Token uint64 `json:"token"`
	Size  int    `json:"size"`
	// Sizes are those of a pusher's versions, in turn.
	Sizes []int  `json:"sizes"`
	Have  uint64 `json:"have"`
	Wait  string `json:"wait"`
	// Milliseconds bound the operation; the default is proctest.Patience.
	Milliseconds int `json:"milliseconds"`
	// Hold is the name under which a pulled version is held.
	Hold string `json:"hold"`
}

// answer is a machine's answer to an order, or an event: a line of JSON at its standard output.
type answer struct {
	// ID is the order's; 0 in an event.
	ID    int    `json:"id,omitempty"`
	Event string `json:"event,omitempty"`
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
	Tag   string `json:"tag,omitempty"`
	// Version is the id of a version.
	Version uint64 `json:"version,omitempty"`
	Token   uint64 `json:"token,omitempty"`
	Newer   bool   `json:"newer,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Path    string `json:"path,omitempty"`
	// Machines are those with an officer.
	Machines []string `json:"machines,omitempty"`
	// Lag is in versions, Milliseconds are the age or the time that something took.
	Lag          uint64 `json:"lag,omitempty"`
	Milliseconds int64  `json:"milliseconds,omitempty"`
	// Received are the bytes that the process has read from sockets and files.
	Received int64 `json:"received,omitempty"`
	// Mapped are the bytes of files of parameters that the process has mapped.
	Mapped int64 `json:"mapped,omitempty"`
}

// Numbered returns the order with a number.
func (o order) Numbered(id int) order {
	o.ID = id
	return o
}

// String says what is to be done.
func (o order) String() string { return o.Do + " " + o.Tag }

// Number is that of the order.
func (a answer) Number() int { return a.ID }

// What is the event.
func (a answer) What() string { return a.Event }

// Err is the text of the error.
func (a answer) Err() string { return a.Error }

// Failed returns an answer with an error.
func (a answer) Failed(code, text string) answer {
	a.Code, a.Error = code, text
	return a
}

// Events of machines.
const (
	// pushedEvent is an acknowledged push, and failedEvent one that has failed.
	pushedEvent = "pushed"
	failedEvent = "failed"
	// sawEvent is a version that a reader has checked, faultEvent one that it must not see.
	sawEvent   = "saw"
	faultEvent = "fault"
	// troubleEvent is an error of a reader other than the one before, which may pass.
	troubleEvent = "trouble"
)

// slow is added to the bounds of what must not take long: other tests use the processors too, and
// with the race detector everything takes ten times as long.
const slow = 2 * time.Second
