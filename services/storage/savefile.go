package storage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
	"github.com/raylink/raylink/internal/backoff"
)

const (
	// savedName is the name of the file in the directory, savedPart the name of one that is not yet
	// complete.
	savedName = "storage.jsonl"
	savedPart = "." + savedName + ".part"

	savedFormat  = "raylink storage"
	savedVersion = 1

	// Permissions are up to the user's umask, because saved values are for other programs too.
	savedPermissions     = 0o666
	directoryPermissions = 0o777

	// maxSavedLine bounds a line: the largest value of a storage, in JSON.
	maxSavedLine = 1 << 30
)

// savedHeader is the first line of the file.
type savedHeader struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	ID      uint64    `json:"id"`
	Saved   time.Time `json:"saved"`
}

// savedFooter is the last line of the file.
type savedFooter struct {
	Entries uint64 `json:"entries"`
	// Checksum is that of all bytes before this line.
	Checksum string `json:"checksum"`
}

// savedEntry is a line between them. Value has protobuf's JSON, but not of a message: that could be
// of a type that the program does not know, or have fields that it does not know.
type savedEntry struct {
	Key     string          `json:"key"`
	ID      uint64          `json:"id"`
	Expires *time.Time      `json:"expires,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"`
	Message *savedMessage   `json:"message,omitempty"`
}

type savedMessage struct {
	Type  string `json:"type"`
	Bytes []byte `json:"base64"`
}

// footerStart is how the last line begins; an entry's begins with its key.
const footerStart = `{"entries":`

func newChecksum() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

func checksumText(sum hash.Hash32) string { return fmt.Sprintf("crc32c:%08x", sum.Sum32()) }

// DamagedFileError means that a file is not what [Client.Save] has written.
type DamagedFileError struct {
	File string
	// Line is the line that is damaged, counted from 1.
	Line   int
	Reason string
}

// Error says where the file is damaged, and how.
func (e *DamagedFileError) Error() string {
	return fmt.Sprintf("%s is damaged in line %d: %s", e.File, e.Line, e.Reason)
}

// savedWriter writes the lines of a file.
type savedWriter struct {
	w       *bufio.Writer
	out     io.Writer // to w and to sum
	sum     hash.Hash32
	entries uint64
}

func newSavedWriter(to io.Writer) *savedWriter {
	w := &savedWriter{w: bufio.NewWriter(to), sum: newChecksum()}
	w.out = io.MultiWriter(w.w, w.sum)
	return w
}

func (w *savedWriter) begin(id uint64, now time.Time) error {
	return w.write(savedHeader{Format: savedFormat, Version: savedVersion, ID: id, Saved: now.UTC()})
}

func (w *savedWriter) write(line any) error {
	text, err := json.Marshal(line)
	if err == nil {
		_, err = w.out.Write(append(text, '\n'))
	}
	return err
}

// add writes an entry.
func (w *savedWriter) add(e *storagev1.Entry) error {
	line := savedEntry{Key: e.GetKey(), ID: e.GetId()}
	if e.GetExpires() != nil {
		expires := e.GetExpires().AsTime()
		line.Expires = &expires
	}
	if message := e.GetValue().GetMessageValue(); message != nil {
		line.Message = &savedMessage{message.GetTypeUrl(), message.GetValue()}
	} else {
		text, err := protojson.Marshal(e.GetValue())
		if err != nil {
			return fmt.Errorf("write %q as JSON: %w", e.GetKey(), err)
		}
		line.Value = text
	}
	w.entries++
	return w.write(line)
}

// end writes the last line.
func (w *savedWriter) end() error {
	if err := w.write(savedFooter{Entries: w.entries, Checksum: checksumText(w.sum)}); err != nil {
		return err
	}
	return w.w.Flush()
}

// readSaved reads a file, and calls yield with each entry, in the order of their keys. It returns a
// [DamagedFileError] if the file is not as it was written: that may be noticed after entries were
// yielded. Errors of yield are returned as they are.
func readSaved(from io.Reader, name string, yield func(*storagev1.Entry) error) error {
	return (&savedReader{r: bufio.NewReader(from), sum: newChecksum(), name: name, yield: yield}).read()
}

type savedReader struct {
	r       *bufio.Reader
	sum     hash.Hash32
	name    string
	line    int
	yield   func(*storagev1.Entry) error
	entries uint64
	last    string // the key of the last entry
}

func (r *savedReader) damaged(format string, args ...any) error {
	return &DamagedFileError{File: r.name, Line: r.line, Reason: fmt.Sprintf(format, args...)}
}

// next returns the next line.
func (r *savedReader) next() ([]byte, error) {
	r.line++
	var line []byte
	for {
		part, err := r.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF):
			return nil, r.damaged("the file ends here, without its last line")
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxSavedLine:
			return nil, r.damaged("the line has more than %d bytes", maxSavedLine)
		}
	}
}

func (r *savedReader) read() error {
	line, err := r.next()
	if err != nil {
		return err
	}
	var header savedHeader
	if err := strictly(line, &header); err != nil || header.Format != savedFormat {
		return r.damaged("it is not the first line of a saved storage: %.100q", line)
	}
	if header.Version != savedVersion {
		return fmt.Errorf("%s has the version %d of the format, this program reads version %d", r.name, header.Version, savedVersion)
	}
	for {
		r.sum.Write(line)
		if line, err = r.next(); err != nil {
			return err
		}
		if bytes.HasPrefix(line, []byte(footerStart)) {
			return r.end(line)
		}
		if err := r.entry(line); err != nil {
			return err
		}
	}
}

func (r *savedReader) entry(line []byte) error {
	var saved savedEntry
	if err := strictly(line, &saved); err != nil {
		return r.damaged("it is no entry: %v", err)
	}
	switch {
	case saved.Key == "":
		return r.damaged("the entry has no key")
	case (saved.Value == nil) == (saved.Message == nil):
		return r.damaged("the entry %.100q has not one value", saved.Key)
	case r.entries > 0 && saved.Key <= r.last:
		return r.damaged("the key %.100q follows %.100q", saved.Key, r.last)
	}
	e := &storagev1.Entry{Key: saved.Key, Id: saved.ID, Value: &storagev1.Value{}}
	if saved.Message != nil {
		e.Value.Kind = &storagev1.Value_MessageValue{MessageValue: &anypb.Any{TypeUrl: saved.Message.Type, Value: saved.Message.Bytes}}
	} else if err := protojson.Unmarshal(saved.Value, e.GetValue()); err != nil || kindOf(e.GetValue()) == noKind {
		return r.damaged("the entry %.100q has an invalid value: %v", saved.Key, err)
	}
	if saved.Expires != nil {
		e.Expires = timestamppb.New(*saved.Expires)
		if err := e.GetExpires().CheckValid(); err != nil {
			return r.damaged("the entry %.100q has an invalid time: %v", saved.Key, err)
		}
	}
	r.entries++
	r.last = saved.Key
	return r.yield(e)
}

func (r *savedReader) end(line []byte) error {
	var footer savedFooter
	if err := strictly(line, &footer); err != nil {
		return r.damaged("it is not the last line of a saved storage: %.100q", line)
	}
	if footer.Entries != r.entries {
		return r.damaged("the file has %d entries, and %d were saved", r.entries, footer.Entries)
	}
	if sum := checksumText(r.sum); footer.Checksum != sum {
		return r.damaged("the checksum of the lines before is %s, not %.20q", sum, footer.Checksum)
	}
	if _, err := r.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return r.damaged("the file does not end here")
	}
	return nil
}

// strictly decodes a line that has one JSON object with no other fields.
func strictly(line []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(line)-1) {
		return errors.New("there is more in the line")
	}
	return nil
}

// openSaved opens the file in a directory for reading.
func openSaved(directory string) (*os.File, error) {
	// Opening a pipe could block.
	file, err := os.OpenFile(filepath.Join(directory, savedName), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("no storage was saved there: %w", err)
		}
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", file.Name())
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// savedFile is a file that gets its name when it is complete. Its lock orders the writers of a
// directory, and ends with the process. So one that was killed leaves at most a part, which the
// next writer replaces.
type savedFile struct {
	*os.File

	directory string
}

// createSaved creates the file, and waits until there is no other writer.
func createSaved(ctx context.Context, directory string) (*savedFile, error) {
	if err := os.MkdirAll(directory, directoryPermissions); err != nil {
		return nil, err
	}
	path := filepath.Join(directory, savedPart)
	pause := backoff.Backoff{First: time.Millisecond, Max: 50 * time.Millisecond}
	for {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, savedPermissions)
		if err != nil {
			return nil, err
		}
		switch err := lockPart(file, path); {
		case err == nil:
			return &savedFile{file, directory}, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		if err := errors.Join(file.Close(), pause.Wait(ctx)); err != nil {
			return nil, fmt.Errorf("waiting for another process that saves: %w", err)
		}
	}
}

// lockPart locks a file and empties it. It returns EWOULDBLOCK if another writer has the lock, or
// has renamed or removed the file meanwhile.
func lockPart(file *os.File, path string) error {
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EINTR) {
			err = unix.EWOULDBLOCK
		}
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(info, now) {
		return unix.EWOULDBLOCK
	}
	return file.Truncate(0)
}

// finish puts the file in place of the one before if err, the error of its writer, is nil, and
// waits until it is on the disk. Otherwise it removes the file, and returns err.
func (f *savedFile) finish(err error) error {
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		if err = os.Rename(f.Name(), filepath.Join(f.directory, savedName)); err == nil {
			return errors.Join(syncDirectory(f.directory), f.Close())
		}
	}
	return errors.Join(err, os.Remove(f.Name()), f.Close())
}

// syncDirectory waits until a directory's names are on the disk.
func syncDirectory(directory string) error {
	d, err := os.Open(directory)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
