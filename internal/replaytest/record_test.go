package replaytest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
)

// Kinds of entries of a record.
const (
	// rowsEntry are rows that were acknowledged, itemEntry is an item, and sampledEntry one that a
	// queue has returned.
	rowsEntry = iota + 1
	itemEntry
	sampledEntry
)

// entry is what a process has recorded.
type entry struct {
	Kind, Life, Writer, Number, Sequence, Count uint64
	// Table and Key are those of an item, whose first row is the one above.
	Table, Key uint64
	// Across is 1 if the item may have rows of several episodes.
	Across uint64
}

const entrySize = 9 * 8

// recorder records what was acknowledged in a file. An entry that was added survives the death of
// its process. It is safe for concurrent use.
type recorder struct{ file *os.File }

func newRecorder(dir string) (*recorder, error) {
	file, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(os.Getpid(), ".record")), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &recorder{file}, err
}

func (r *recorder) add(entries ...entry) error {
	encoded := make([]byte, 0, entrySize*len(entries))
	for _, e := range entries {
		var err error
		if encoded, err = binary.Append(encoded, binary.LittleEndian, e); err != nil {
			return err
		}
	}
	_, err := r.file.Write(encoded)
	return err
}

// readRecords returns the entries of a life that all processes have recorded.
func readRecords(dir string, life uint64) ([]entry, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.record"))
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, file := range files {
		encoded, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		entries := make([]entry, len(encoded)/entrySize)
		if _, err := binary.Decode(encoded, binary.LittleEndian, entries); err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Life == life {
				all = append(all, e)
			}
		}
	}
	return all, nil
}

// runs returns entries of rows, one for each run of consecutive sequence numbers.
func runs(life, writer, number uint64, sequences []uint64) []entry {
	var all []entry
	for i, s := range sequences {
		if i > 0 && s == sequences[i-1]+1 {
			all[len(all)-1].Count++
			continue
		}
		all = append(all, entry{Kind: rowsEntry, Life: life, Writer: writer, Number: number + uint64(i), Sequence: s, Count: 1})
	}
	return all
}
