package replaytest

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var (
	rows  = flag.Int("rows", 20_000, "how many rows TestReplaySurvivesKills writes at least")
	kills = flag.Int("kills", 1, "how many times a test kills the replay's process")
	seed  = flag.Uint64("seed", 0, "the seed of random choices; 0 chooses one")
	stuck = flag.Duration("stuck", time.Minute, "how long a task may make no progress: reaching it is a failure")
)

const (
	// role is the environment variable that makes this binary a Brain or an actor.
	role = "RAYLINK_TEST_REPLAY"
	// listen is that of the address at which Brain listens, and records that of the directory of
	// records.
	listen  = "RAYLINK_TEST_REPLAY_LISTEN"
	records = "RAYLINK_TEST_REPLAY_RECORDS"
	// brainRole is Brain's. An actor maps the ring, except for a remote one.
	brainRole  = "brain"
	actorRole  = "actor"
	remoteRole = "remote"
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
		err = serveActor(what == remoteRole)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// order is what a test has an actor do.
type order struct {
	// ID is repeated in the answer.
	ID int    `json:"id"`
	Do string `json:"do"`
	// Path is that of the replay.
	Path string `json:"path,omitempty"`
	// Life is the number of the replay: each one has another.
	Life uint64 `json:"life,omitempty"`
	// Directory is that of the ring that is created.
	Directory string `json:"directory,omitempty"`
	// File is that of a ring that outlives its node.
	File string `json:"file,omitempty"`
	// Aged makes the ring that of items that are updated at a high rate.
	Aged bool `json:"aged,omitempty"`
	// Calm makes tasks write slowly.
	Calm bool `json:"calm,omitempty"`
	// Tasks are started. Each writer of them has an id from First on, and its choices follow from
	// Seed.
	Tasks []string `json:"tasks,omitempty"`
	First uint64   `json:"first,omitempty"`
	Seed  uint64   `json:"seed,omitempty"`
	// Lost is how many items of a queue may have been lost with their readers.
	Lost int `json:"lost,omitempty"`
	// Kills are those of nodes whose file another node has taken over.
	Kills []killed `json:"kills,omitempty"`
}

// killed is the time in which a process was killed. It was alive before, and dead afterwards.
type killed struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Stalled is how long the machine may have kept the process from running before. Then it can't
	// save anything.
	Stalled int64 `json:"stalled"`
}

// maxAge is how old the items of a file may be.
const maxAge = int64(time.Second)

// survives reports whether what was acknowledged has survived kills of the node.
func survives(kills []killed, begin, end int64) bool {
	for _, k := range kills {
		if begin <= k.To && end >= k.From-k.Stalled-maxAge {
			return false
		}
	}
	return true
}

// answer is an actor's answer to an order, or an event.
type answer struct {
	// ID is the order's; 0 in an event.
	ID    int    `json:"id,omitempty"`
	Event string `json:"event,omitempty"`
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
	Path  string `json:"path,omitempty"`
	PID   int    `json:"pid,omitempty"`
	// Counts are how much each task has done.
	Counts map[string]int64 `json:"counts,omitempty"`
	// Faults are what an audit has found, and Text what it has checked.
	Faults []string `json:"faults,omitempty"`
	Text   string   `json:"text,omitempty"`
	// Kept is how many items there must be since before the node was killed.
	Kept int `json:"kept,omitempty"`
}

// Numbered returns the order with a number.
func (o order) Numbered(id int) order {
	o.ID = id
	return o
}

// String says what is to be done.
func (o order) String() string { return o.Do }

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

// Events of actors.
const (
	// progressEvent has the counts of tasks.
	progressEvent = "progress"
	// releasedEvent is the error of a call that waited for what never comes.
	releasedEvent = "released"
	// troubleEvent is an error that may pass, faultEvent is what must not happen.
	troubleEvent = "trouble"
	faultEvent   = "fault"
)
