package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/raylink/raylink/gen/raylink/storage/v1"
)

// Selection selects keys that are saved or loaded: [Keys] or [Prefix]. Several select all keys that
// one of them selects; none selects all keys.
type Selection struct{ keys, prefixes []string }

// Keys selects keys. If one is missing, saving and loading fail with [ErrNotFound].
func Keys(keys ...string) Selection { return Selection{keys: slices.Clone(keys)} }

// Prefix selects the keys with a prefix, of which there may be none.
func Prefix(prefix string) Selection { return Selection{prefixes: []string{prefix}} }

func (s Selection) applyToLoad(l *loading) { l.selection = l.selection.with(s) }

func (s Selection) with(other Selection) Selection {
	return Selection{append(slices.Clone(s.keys), other.keys...), append(slices.Clone(s.prefixes), other.prefixes...)}
}

// has reports whether a key is selected.
func (s Selection) has(key string) bool {
	if len(s.keys)+len(s.prefixes) == 0 {
		return true
	}
	return slices.Contains(s.keys, key) ||
		slices.ContainsFunc(s.prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// Saved describes what was saved or loaded.
type Saved struct {
	// Entries is their number.
	Entries uint64
	// ID is the id of the storage's last write that is in the saved state; after loading, that of
	// the last entry that was stored, 0 without any.
	ID uint64
}

// Save saves the selected entries, all of one moment, in a directory, which it creates if
// necessary. They are in one file, storage.jsonl, in place of what was saved there before: see
// docs/storage.md for its format. Save returns when the file is on the disk. If it fails, or its
// process dies, the previous file is there as before.
//
// Calls for one directory wait for each other, also those of other processes.
func (c *Client) Save(ctx context.Context, directory string, selections ...Selection) (Saved, error) {
	var selection Selection
	for _, s := range selections {
		selection = selection.with(s)
	}
	saved, err := c.save(ctx, directory, selection)
	if err != nil {
		return Saved{}, fmt.Errorf("save to %s: %w", directory, err)
	}
	return saved, nil
}

func (c *Client) save(ctx context.Context, directory string, selection Selection) (saved Saved, err error) {
	file, err := createSaved(ctx, directory)
	if err != nil {
		return Saved{}, err
	}
	defer func() { err = file.finish(err) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &storagev1.ExportRequest{Keys: selection.keys, Prefixes: selection.prefixes}
	if len(req.GetKeys())+len(req.GetPrefixes()) == 0 {
		req.Prefixes = []string{""}
	}
	stream, err := c.handle.Export(ctx, req)
	if err != nil {
		return Saved{}, typed(err)
	}
	defer func() { _ = stream.Close() }()
	missing := setOf(selection.keys)
	w := newSavedWriter(file)
	for first := true; ; first = false {
		res, err := stream.Receive()
		if err != nil && !errors.Is(err, io.EOF) {
			return Saved{}, typed(err)
		}
		if first {
			saved.ID = res.GetId()
			if err := w.begin(saved.ID, time.Now()); err != nil {
				return Saved{}, err
			}
		}
		if err != nil {
			break
		}
		for _, e := range res.GetEntries() {
			if err := w.add(e); err != nil {
				return Saved{}, err
			}
			delete(missing, e.GetKey())
		}
	}
	if err := missingError(missing, "the storage"); err != nil {
		return Saved{}, err
	}
	saved.Entries = w.entries
	return saved, w.end()
}

func setOf(keys []string) map[string]bool {
	set := make(map[string]bool, len(keys))
	for _, key := range keys {
		set[key] = true
	}
	return set
}

// missingError returns the error for selected keys that are missing.
func missingError(missing map[string]bool, in string) error {
	if len(missing) == 0 {
		return nil
	}
	var keys []string
	for key := range missing {
		keys = append(keys, fmt.Sprintf("%.100q", key))
	}
	slices.Sort(keys)
	const most = 10
	text := strings.Join(keys[:min(len(keys), most)], ", ")
	if more := len(keys) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf("%w: %s does not have %s", ErrNotFound, in, text)
}

// LoadOption configures [Client.Load]: a [Selection] or [Sync].
type LoadOption interface{ applyToLoad(l *loading) }

// loading is one call of Load.
type loading struct {
	selection  Selection
	durability storagev1.Durability

	batch []*storagev1.Entry
	size  int
	// sent is the number of messages.
	sent int
}

// Messages to the storage have up to these numbers of entries and bytes, and at least one entry.
const (
	loadEntries = 1000
	loadBytes   = 256 << 10
)

// Load stores entries that were saved in a directory, all or none, in place of those that the
// storage has under their keys. Others stay. Entries get new ids; those whose time is over are left
// out. A file that is not as it was written is a [DamagedFileError], and changes nothing.
func (c *Client) Load(ctx context.Context, directory string, opts ...LoadOption) (Saved, error) {
	l := &loading{}
	for _, o := range opts {
		o.applyToLoad(l)
	}
	saved, err := l.run(ctx, c, directory)
	if err != nil {
		return Saved{}, fmt.Errorf("load from %s: %w", directory, err)
	}
	return saved, nil
}

func (l *loading) run(ctx context.Context, c *Client, directory string) (_ Saved, err error) {
	file, err := openSaved(directory)
	if err != nil {
		return Saved{}, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	// The file is read twice, so that the storage gets nothing of a damaged one.
	missing := setOf(l.selection.keys)
	now := time.Now()
	err = readSaved(file, file.Name(), func(e *storagev1.Entry) error {
		delete(missing, e.GetKey())
		return nil
	})
	if err == nil {
		err = missingError(missing, file.Name())
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return Saved{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.handle.Import(ctx)
	if err != nil {
		return Saved{}, typed(err)
	}
	defer func() {
		// Cancelled first, or the storage could regard the entries as complete.
		cancel()
		_ = stream.Close()
	}()
	send := func(req *storagev1.ImportRequest) error { return stream.Send(req) }
	err = readSaved(file, file.Name(), func(e *storagev1.Entry) error {
		if !l.selection.has(e.GetKey()) || e.GetExpires() != nil && !e.GetExpires().AsTime().After(now) {
			return nil
		}
		return l.add(e, send)
	})
	if err == nil && (len(l.batch) > 0 || l.sent == 0) {
		err = l.flush(send)
	}
	if err != nil && !errors.Is(err, errImportEnded) {
		return Saved{}, err
	}
	res, err := stream.CloseAndReceive()
	return Saved{Entries: res.GetEntries(), ID: res.GetId()}, typed(err)
}

// errImportEnded means that the storage has ended the import: the response has the reason.
var errImportEnded = errors.New("the storage has ended the import")

func (l *loading) add(e *storagev1.Entry, send func(*storagev1.ImportRequest) error) error {
	size := proto.Size(e)
	if len(l.batch) > 0 && (l.size+size > loadBytes || len(l.batch) == loadEntries) {
		if err := l.flush(send); err != nil {
			return err
		}
	}
	l.batch = append(l.batch, e)
	l.size += size
	return nil
}

func (l *loading) flush(send func(*storagev1.ImportRequest) error) error {
	err := send(&storagev1.ImportRequest{Entries: l.batch, Durability: l.durability})
	l.batch, l.size = nil, 0
	l.sent++
	if errors.Is(err, io.EOF) {
		return errImportEnded
	}
	return err
}
