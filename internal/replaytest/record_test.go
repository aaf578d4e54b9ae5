package replaytest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Kinds of entries of a record.
const (
	// rowsEntry are rows that were acknowledged, itemEntry is an item, and sampledEntry one that a
	// queue has returned.
	rowsEntry = iota + 1
	itemEntry
	sampledEntry
	// updateEntry and deleteEntry are an item that a call is going to change, and doneEntry such a
	// call that was acknowledged.
	updateEntry
	deleteEntry
	doneEntry
)

// entry is what a process has recorded.
type entry struct {
	Kind, Life, Writer, Number, Sequence, Count uint64
	// Table and Key are those of an item, whose first row is the one above.
	Table, Key uint64
	// Across is 1 if the item may have rows of several episodes.
	Across uint64
	// Version is that of a priority.
	Version uint64
	// Call identifies a call that changes items.
	Call uint64
	// Begin is a time before what was acknowledged was asked for, End one after the
	// acknowledgement.
	Begin, End int64
}

const entrySize = 13 * 8

// append appends the entry to a record.
func (e *entry) append(b []byte) []byte {
	for _, x := range []uint64{
		e.Kind, e.Life, e.Writer, e.Number, e.Sequence, e.Count, e.Table, e.Key, e.Across, e.Version, e.Call,
		uint64(e.Begin), uint64(e.End),
	} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

// parse sets the entry to what append has appended.
func (e *entry) parse(b []byte) {
	for i, x := range []*uint64{
		&e.Kind, &e.Life, &e.Writer, &e.Number, &e.Sequence, &e.Count, &e.Table, &e.Key, &e.Across, &e.Version, &e.Call,
	} {
		*x = binary.LittleEndian.Uint64(b[8*i:])
	}
	e.Begin, e.End = int64(binary.LittleEndian.Uint64(b[entrySize-16:])), int64(binary.LittleEndian.Uint64(b[entrySize-8:]))
}

// clock returns the time, which is the same in all processes.
func clock() int64 { return time.Now().UnixNano() }

// recorder records what was acknowledged in a file of each life. An entry that was added survives
// the death of the process.
type recorder struct {
	dir  string
	life uint64
	file *os.File
}

// lifeRecords is the directory of the records of a life.
func lifeRecords(dir string, life uint64) string {
	return filepath.Join(dir, strconv.FormatUint(life, 10))
}

// begin records in the file of a life from now on.
func (r *recorder) begin(life uint64) error {
	if r.file != nil && r.life == life {
		return nil
	}
	dir := lifeRecords(r.dir, life)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(os.Getpid(), ".record")), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = r.close()
	r.file, r.life = file, life
	return err
}

func (r *recorder) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// add adds entries. It is safe for concurrent use.
func (r *recorder) add(entries ...entry) error {
	encoded := make([]byte, 0, entrySize*len(entries))
	for i := range entries {
		encoded = entries[i].append(encoded)
	}
	_, err := r.file.Write(encoded)
	return err
}

// visitRecords calls a function with the entries of a life that all processes have recorded, each
// process's in their order. Its memory does not depend on how many there are.
func visitRecords(dir string, life uint64, visit func(e *entry)) error {
	files, err := filepath.Glob(filepath.Join(lifeRecords(dir, life), "*.record"))
	for _, file := range files {
		err = errors.Join(err, visitRecord(file, visit))
	}
	return err
}

func visitRecord(path string, visit func(e *entry)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it was only read
	in := bufio.NewReaderSize(file, 1<<20)
	var encoded [entrySize]byte
	for {
		switch _, err := io.ReadFull(in, encoded[:]); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // its writer was killed
			return nil
		case err != nil:
			return err
		}
		var e entry
		e.parse(encoded[:])
		visit(&e)
	}
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
