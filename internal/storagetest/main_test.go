package storagetest

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

var (
	kills = flag.Int("kills", 10, "how many times TestAcknowledgedWritesSurviveKillsOfTheStorage kills each storage")
	seed  = flag.Uint64("seed", 0, "the seed of random choices; 0 chooses one")
)

const (
	// role is the environment variable that makes this binary a Brain or a worker.
	role = "RAYLINK_TEST_STORAGE"
	// listen and durability are those of the address at which Brain listens, and of its storage's
	// durability.
	listen     = "RAYLINK_TEST_STORAGE_LISTEN"
	durability = "RAYLINK_TEST_STORAGE_DURABILITY"
	brainRole  = "brain"
	workerRole = "worker"
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
		go writeGoroutines()
		err = serveBrain()
	default:
		err = serveWorker()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// order is what a test has a worker do: a line of JSON at its standard input.
type order struct {
	// ID is repeated in the answer.
	ID int    `json:"id"`
	Do string `json:"do"`
	// Storage is the path of the storage; the default is that of the system.
	Storage string `json:"storage,omitempty"`
	// Durability, Directory and History are those of a storage that is created.
	Durability string `json:"durability,omitempty"`
	Directory  string `json:"directory,omitempty"`
	// Writers are the numbers of the writers that are started. Round makes their values differ from
	// those of other rounds.
	Writers []int `json:"writers,omitempty"`
	Round   int   `json:"round,omitempty"`
	// Key is that of a write or a read, or the prefix of a watch.
	Key string `json:"key,omitempty"`
	// Value and Size are of a put: the value is followed by so many bytes.
	Value string `json:"value,omitempty"`
	Size  int    `json:"size,omitempty"`
	// Milliseconds bound the operation; the default is proctest.Patience.
	Milliseconds int `json:"milliseconds,omitempty"`
}

// answer is a worker's answer to an order, or an event: a line of JSON at its standard output.
type answer struct {
	// ID is the order's; 0 in an event.
	ID    int    `json:"id,omitempty"`
	Event string `json:"event,omitempty"`
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
	// The name of the writer, reader or watcher.
	Who     string   `json:"who,omitempty"`
	Attempt *attempt `json:"attempt,omitempty"`
	Read    *read    `json:"read,omitempty"`
	Sent    *sent    `json:"sent,omitempty"`
	PID     int      `json:"pid,omitempty"`
	Path    string   `json:"path,omitempty"`
	// Write is the id of a write, and Last that of the last one.
	Write   uint64 `json:"write,omitempty"`
	Last    uint64 `json:"last,omitempty"`
	Failure string `json:"failure,omitempty"`
	// Text is a value.
	Text string `json:"text,omitempty"`
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

// Events of workers.
const (
	attemptEvent = "attempt"
	readEvent    = "read"
	sentEvent    = "sent"
	// troubleEvent is an error that may pass, unless it repeats; faultEvent is any other.
	troubleEvent = "trouble"
	faultEvent   = "fault"
)
