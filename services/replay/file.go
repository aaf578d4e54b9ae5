package replay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
	"github.com/raylink/raylink/services/internal/mapfile"
	"github.com/raylink/raylink/services/replay/internal/saved"
	"github.com/raylink/raylink/services/replay/internal/table"
	"github.com/raylink/raylink/services/replay/ring"
)

// A replay with a file has three:
//
//	FILE        the ring; its mark is the highest number of an item's key that may be in use
//	FILE.items  the tables: see package saved
//	FILE.node   a reference to the node, locked by its process
//
// The node takes the lock before it looks at the other two, and has it until its process ends.

const (
	itemsSuffix, nodeSuffix = ".items", ".node"
	// saveInterval is how often a node saves what has changed in its tables.
	saveInterval = 250 * time.Millisecond
	// maxAge is how old the saved items may be. If they are older, because the disk or the
	// processor kept the node waiting, the node logs that.
	maxAge = time.Second
)

// FileError explains why a node can't be created with a file. Nothing was changed. It matches
// [ring.ErrLayout] if the file has other columns or another capacity, [ring.ErrFormat] if it is
// damaged or has another version, [ring.ErrOtherMachine] if the machine was booted since,
// [ring.ErrForeign] if it is another user's, [ring.ErrInUse] if a node has it open, and otherwise
// the operating system's error. [CreateError] returns it for a node in another process.
type FileError struct {
	Path string
	// Reason says what is wrong, and what to do.
	Reason string
	// Cause is one of the errors above.
	Cause error
}

// Error names the file and says what is wrong with it.
func (e *FileError) Error() string {
	return fmt.Sprintf("create a replay with the file %s: %s", e.Path, e.Reason)
}

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Cause }

// problems are the causes of a FileError that a caller may act on.
func problems() map[replayv1.FileProblem]error {
	return map[replayv1.FileProblem]error{
		replayv1.FileProblem_FILE_PROBLEM_LAYOUT:        ring.ErrLayout,
		replayv1.FileProblem_FILE_PROBLEM_FORMAT:        ring.ErrFormat,
		replayv1.FileProblem_FILE_PROBLEM_OTHER_MACHINE: ring.ErrOtherMachine,
		replayv1.FileProblem_FILE_PROBLEM_FOREIGN:       ring.ErrForeign,
		replayv1.FileProblem_FILE_PROBLEM_IN_USE:        ring.ErrInUse,
		replayv1.FileProblem_FILE_PROBLEM_SPACE:         ErrNoSpace,
	}
}

// detail returns the error for a process that gets no Go values.
func (e *FileError) detail() *replayv1.FileFailure {
	detail := &replayv1.FileFailure{Path: e.Path, Reason: e.Reason}
	for problem, cause := range problems() {
		if errors.Is(e.Cause, cause) {
			detail.Problem = problem
		}
	}
	return detail
}

// CreateError returns the [FileError] that an error of CreateReplay contains, or the error. It
// matches [ring.ErrLayout] if there can't be a ring of such columns and capacity, [ErrNoSpace] if
// the file system has no room for it, and [ErrLimiter] if there can't be such tables. Such an error
// may be that of a node in another process, from which it has a code, a text and details.
func CreateError(err error) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*FileError](err); ok {
		return known
	}
	remote, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	for _, detail := range remote.Details() {
		message, unmarshalErr := connectproto.UnmarshalErrorDetail(detail)
		if failure, ok := message.(*replayv1.FileFailure); ok && unmarshalErr == nil {
			cause := error(remote)
			if known := problems()[failure.GetProblem()]; known != nil {
				cause = known
			}
			return &FileError{Path: failure.GetPath(), Reason: failure.GetReason(), Cause: cause}
		}
	}
	return ringError(err)
}

// fileError returns the error for a cause.
func fileError(path string, cause error) error {
	if known, ok := errors.AsType[*FileError](cause); ok {
		return known
	}
	reason := cause.Error()
	switch {
	case errors.Is(cause, ring.ErrOtherMachine):
		reason = "the machine was booted since the file was last used, or the file is another machine's, so its rows can't be trusted: " +
			"remove it together with the files " + itemsSuffix + " and " + nodeSuffix + " next to it, and restore a checkpoint"
	case errors.Is(cause, ring.ErrFormat):
		reason += ": remove it together with the files " + itemsSuffix + " and " + nodeSuffix + " next to it, or choose another file"
	case errors.Is(cause, ring.ErrInUse):
		reason += ": end that node first, or choose another file"
	case errors.Is(cause, ring.ErrForeign):
		reason += ": choose another file"
	}
	return &FileError{Path: path, Reason: reason, Cause: cause}
}

// openNode creates a node whose ring is in a file: a new one, or that of a node that has ended.
func openNode(config *replayv1.ReplayConfig, self *nodev1.NodeRef, logger *slog.Logger) (*node, error) {
	layout, err := configured(config)
	if err != nil {
		return nil, invalidConfig(err)
	}
	if _, err := newTables(config.GetTables()); err != nil {
		return nil, invalidConfig(err)
	}
	path := config.GetFile()
	switch {
	case !filepath.IsAbs(path):
		// The creator did not link this package, which makes paths absolute.
		return nil, invalidConfig(fmt.Errorf("the file %q is relative: use an absolute path", path))
	case config.GetDirectory() != "":
		return nil, invalidConfig(fmt.Errorf("it has the file %s and the directory %s: set one of them", path, config.GetDirectory()))
	}
	own, err := lockNodeFile(path + nodeSuffix)
	if err != nil {
		return nil, connectError(fileError(path, err))
	}
	n, err := own.open(path, layout, config, self, logger)
	if err != nil {
		return nil, connectError(fileError(path, errors.Join(err, own.giveUp())))
	}
	return n, nil
}

// open opens the ring, or creates it if there is none.
func (own *nodeFile) open(path string, layout ring.Layout, config *replayv1.ReplayConfig, self *nodev1.NodeRef, logger *slog.Logger) (*node, error) {
	var ts *tables
	var log *saved.Log
	created := false
	r, err := ring.TakeOver(path, func(r *ring.Ring) error {
		if err := compareLayouts(layout, r.Layout()); err != nil {
			return &FileError{Path: path, Reason: err.Error(), Cause: err}
		}
		var err error
		if ts, log, err = restoreTables(r, config.GetTables(), logger); err != nil {
			return err
		}
		return own.announce(self) // before clients notice that the ring was taken over
	})
	if errors.Is(err, ring.ErrFormat) && own.fresh && unfinished(path) {
		if err := os.Remove(path); err != nil {
			return nil, err //nolint:wrapcheck // the caller adds the file
		}
		err = fs.ErrNotExist
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if r, err = ring.Create(path, layout); err != nil {
			return nil, err
		}
		created = true
		if ts, err = newTables(config.GetTables()); err == nil {
			log, err = newItems(r, ts)
		}
		if err == nil {
			err = own.announce(self)
		}
		if err != nil {
			if log != nil {
				err = errors.Join(err, log.Close(), os.Remove(path+itemsSuffix))
			}
			return nil, errors.Join(err, r.Remove(), r.Close())
		}
	case err != nil:
		if log != nil {
			err = errors.Join(err, log.Close())
		}
		return nil, err
	default:
		stats, err := r.Stats()
		if err != nil {
			return nil, errors.Join(err, log.Close(), r.Close())
		}
		logger.Info("took over the replay's file", "file", path, "rows", stats.Readable, "items", ts.sizes())
	}
	for _, t := range ts.byName {
		t.Reserve(func(number uint64) { _ = r.RaiseMark(number) }) // fails only once the node has ended
	}
	w, err := r.Writer()
	if err != nil {
		return nil, errors.Join(err, log.Close(), r.Close())
	}
	n := nodeOf(r, w, config, ts)
	n.file = &openFile{own: own, log: log, logger: logger, path: path + itemsSuffix, created: created}
	n.file.start()
	return n, nil
}

// compareLayouts returns an error that names what was asked for and what the file has.
func compareLayouts(want, got ring.Layout) error {
	if err := compareColumns("", want.Columns, got.Columns); err != nil {
		e, _ := errors.AsType[*SchemaError](err)
		return fmt.Errorf("%w: column %d, %q, is %s in the configuration, and %s in the file: use the same columns, or another file",
			ring.ErrLayout, e.Index, e.Column, describe(e.Want), describe(e.Got))
	}
	if want.Capacity != got.Capacity {
		return fmt.Errorf("%w: the configuration has room for %d rows, and the file for %d: use the same capacity, or another file",
			ring.ErrLayout, want.Capacity, got.Capacity)
	}
	return nil
}

// unfinished reports whether a file is that of a ring whose creator was killed before it wrote the
// header.
func unfinished(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // it was only read
	var begin [4096]byte
	n, err := f.Read(begin[:])
	return (err == nil || errors.Is(err, io.EOF)) && len(bytes.Trim(begin[:n], "\x00")) == 0
}

// newItems makes the file of items of a new ring.
func newItems(r *ring.Ring, ts *tables) (*saved.Log, error) {
	id := r.ID()
	log, err := saved.Create(r.Path()+itemsSuffix, id[:], ts.sources())
	if err != nil {
		return nil, fmt.Errorf("create the file of its items: %w", err)
	}
	return log, nil
}

// sources are the tables as they are saved.
func (ts *tables) sources() []saved.Source {
	sources := make([]saved.Source, len(ts.configs))
	for i, c := range ts.configs {
		sources[i] = saved.Source{Name: c.GetName(), Config: encodeTable(c), Table: ts.byName[c.GetName()]}
	}
	return sources
}

// inOrder are the tables in the order of the configuration.
func (ts *tables) inOrder() []*table.Table {
	list := make([]*table.Table, len(ts.names))
	for i, name := range ts.names {
		list[i] = ts.byName[name]
	}
	return list
}

func (ts *tables) sizes() int {
	n := 0
	for _, t := range ts.byName {
		n += t.Len()
	}
	return n
}

func encodeTable(c *replayv1.TableConfig) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return nil // can't happen: it was decoded from the configuration
	}
	return b
}

// restoreTables returns the tables of a ring that is being taken over, and their log.
func restoreTables(r *ring.Ring, configs []*replayv1.TableConfig, logger *slog.Logger) (*tables, *saved.Log, error) {
	path := r.Path() + itemsSuffix
	mark, err := r.Mark()
	if err != nil {
		return nil, nil, err
	}
	loading, err := r.Loading()
	if err != nil {
		return nil, nil, err
	}
	var content *saved.Content
	if !loading {
		content, err = readItems(path, r.ID())
	}
	switch {
	case loading:
		// The file may have the items of a checkpoint, whose rows are not complete.
		logger.Warn("the process of the replay was killed while it restored a checkpoint: the replay is empty, as it was before", "file", r.Path())
		content = &saved.Content{}
	case errors.Is(err, fs.ErrNotExist) && mark == 0:
		// No table has had an item. The ring's creator was killed before it made the file, or had
		// no tables.
		content = &saved.Content{}
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%w: the file of its items is missing: %v", ring.ErrFormat, err) //nolint:errorlint // the ring's file exists
	case err != nil:
		return nil, nil, err
	}
	same := content.End > 0 && len(content.Tables) == len(configs)
	ts, err := makeTables(configs, func(c *replayv1.TableConfig, config table.Config) (*table.Table, error) {
		before := content.Find(c.GetName())
		if before == nil {
			same = false
			if content.End > 0 {
				logger.Info("the replay's file does not have the table, which is empty", "file", path, "table", c.GetName())
			}
			return table.Restore(config, table.Meta{Number: mark}, func(func(table.State) bool) {})
		}
		if len(before.Config) == 0 || !bytes.Equal(before.Config, encodeTable(c)) {
			same = false
			logDifferences(logger, path, before.Config, c)
		}
		before.Meta.Number = max(before.Meta.Number, mark)
		t, err := before.Restore(inUse(before, c, config))
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ring.ErrFormat, path, err)
		}
		same = same && t.Len() == before.Len()
		return t, nil
	})
	if err != nil {
		return nil, nil, err
	}
	for i, t := range content.Tables {
		if ts.byName[t.Name] == nil {
			logger.Warn("the table is not in the configuration any more: its items are dropped", "file", path, "table", t.Name, "items", t.Len())
		}
		same = same && t.Name == ts.names[i]
	}
	if same {
		log, err := saved.Resume(path, content, ts.sources())
		return ts, log, err
	}
	log, err := newItems(r, ts)
	return ts, log, err
}

// inUse returns the configuration with which a table goes on: that of the code. If the code has the
// same limiter as before, but another was set meanwhile, the latter stays.
func inUse(before *saved.Table, c *replayv1.TableConfig, config table.Config) table.Config {
	var old replayv1.TableConfig
	if err := proto.Unmarshal(before.Config, &old); err != nil || !proto.Equal(old.GetLimiter(), c.GetLimiter()) {
		return config
	}
	with := config
	with.Limiter = before.Meta.Limiter
	if _, err := table.New(with); err != nil {
		return config
	}
	return with
}

// readItems reads the file of a ring's items.
func readItems(path string, id ring.ID) (*saved.Content, error) {
	f, size, err := mapfile.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the file of its items: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	content, err := saved.Read(f, size)
	switch {
	case errors.Is(err, saved.ErrDamaged), errors.Is(err, saved.ErrVersion):
		return nil, fmt.Errorf("%w: the file of its items, %s: %w", ring.ErrFormat, path, err)
	case err != nil:
		return nil, fmt.Errorf("read the file of its items: %w", err)
	case content.End == 0:
		return nil, fmt.Errorf("%w: the file of its items, %s, is not complete", ring.ErrFormat, path)
	case !bytes.Equal(content.Owner, id[:]):
		return nil, fmt.Errorf("%w: the file of its items, %s, is that of another ring, %x, and not of %v", ring.ErrFormat, path, content.Owner, id)
	}
	return content, nil
}

// logDifferences logs what the configuration of a table has changed.
func logDifferences(logger *slog.Logger, path string, before []byte, now *replayv1.TableConfig) {
	var old replayv1.TableConfig
	if err := proto.Unmarshal(before, &old); err != nil {
		logger.Warn("the configuration of the table in the replay's file is not readable", "file", path, "table", now.GetName(), "error", err)
		return
	}
	for _, d := range tableDifferences(&old, now) {
		logger.Warn("the configuration of the table has changed, and that of the code is used", "file", path, "table", now.GetName(), "change", d)
	}
}

// tableDifferences describes the settings that differ, such as "max_items: 10 became 5".
func tableDifferences(before, now *replayv1.TableConfig) []string {
	var differences []string
	fields := now.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		a, b := settingText(before, field), settingText(now, field)
		if a != b {
			differences = append(differences, fmt.Sprintf("%s: %s became %s", field.Name(), a, b))
		}
	}
	return differences
}

func settingText(c *replayv1.TableConfig, field protoreflect.FieldDescriptor) string {
	m := c.ProtoReflect()
	switch {
	case !m.Has(field):
		return "the default"
	case field.Message() == nil:
		return m.Get(field).String()
	}
	text := prototext.MarshalOptions{}.Format(m.Get(field).Message().Interface())
	return cmp.Or(strings.Join(strings.Fields(text), " "), "the default") // the spaces are not always the same
}

// openFile is a file that a node has open.
type openFile struct {
	own    *nodeFile
	log    *saved.Log
	logger *slog.Logger
	path   string
	// created means that there was no ring before.
	created bool

	// cancel ends the goroutine that saves.
	cancel context.CancelFunc
	saver  sync.WaitGroup
	// using is held while log is used, until it is closed.
	using  sync.Mutex
	closed bool

	// mu guards the fields below.
	mu sync.Mutex
	// problem is why the items were not saved since, or nil.
	problem error
	since   time.Time
	// late is set if the last save was late.
	late bool
}

// start saves the tables from now on.
func (f *openFile) start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel, f.since = cancel, time.Now()
	f.saver.Go(func() {
		ticker := time.NewTicker(saveInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				f.save()
			}
		}
	})
}

// save saves what has changed. An error is logged once, until saving succeeds again.
func (f *openFile) save() {
	f.using.Lock()
	defer f.using.Unlock()
	begin := time.Now()
	err := f.log.Save()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil && f.problem != nil:
		f.logger.Info("the replay's items are saved again", "file", f.path)
	case err != nil && f.problem == nil:
		f.logger.Error("the replay's items can't be saved: if the node is killed now, those since are lost", "file", f.path, "error", err)
	}
	if f.problem = err; err != nil {
		return
	}
	switch late := time.Since(f.since); {
	case late <= maxAge:
		f.late = false
	case !f.late:
		f.late = true
		f.logger.Warn("the replay's items were saved late: if the node had been killed just before, those since would have been lost",
			"file", f.path, "after", late)
	}
	f.since = begin
}

// status returns when the items were last saved, and why not since.
func (f *openFile) status() *replayv1.FileStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &replayv1.FileStatus{Items: f.path, SavedNs: uint64(time.Since(f.since))} //nolint:gosec // not negative
	if f.problem != nil {
		s.Problem = f.problem.Error()
	}
	return s
}

// close saves the tables, which were closed, and closes the file of items.
func (f *openFile) close() error {
	f.cancel()
	f.saver.Wait()
	f.using.Lock()
	defer f.using.Unlock()
	f.closed = true
	return errors.Join(f.log.Save(), f.log.Close())
}

// adopt writes a file with the items of the copies before the tables adopt them, so that a lack of
// space changes nothing. It replaces the file that there is while no call can use the tables, just
// before rows become readable by commit. If the process is killed in between, the ring says that it
// is being filled, and the file's items do not count.
func (f *openFile) adopt(ts *tables, adopted, copies []*table.Table, commit func() error) error {
	f.using.Lock()
	defer f.using.Unlock()
	if f.closed {
		return ring.ErrEnded
	}
	all := ts.inOrder()
	for i, t := range adopted {
		all[slices.Index(all, t)] = copies[i]
	}
	replacement, err := f.log.Prepare(all)
	if err != nil {
		return err //nolint:wrapcheck // complete
	}
	replaced := false
	err = table.Adopt(adopted, copies, func() error {
		if err := replacement.Commit(); err != nil {
			return err //nolint:wrapcheck // complete
		}
		replaced = true
		return commit()
	})
	if err == nil {
		return nil
	}
	if err = errors.Join(err, replacement.Abort()); replaced {
		// The rows did not become readable, so the items must go, too.
		if replacement, again := f.log.Prepare(ts.inOrder()); again != nil {
			err = errors.Join(err, again)
		} else {
			err = errors.Join(err, replacement.Commit())
		}
	}
	return err //nolint:wrapcheck // complete
}

// nodeFile is the file with the lock and the reference of a node: a CRC-32C and a length, uint32
// each, and a NodeRef.
type nodeFile struct {
	file *os.File
	// fresh means that no node has ever been announced in it.
	fresh bool
}

const (
	refHeader = 8
	maxRef    = 64 << 10
	// lockOffset is that of the byte that is locked.
	lockOffset = 1 << 30
)

// lockNodeFile locks the file, which it creates if it does not exist.
func lockNodeFile(path string) (*nodeFile, error) {
	for {
		own, err := tryLockNodeFile(path)
		if own != nil || err != nil {
			return own, err
		}
	}
}

// tryLockNodeFile is lockNodeFile, but returns nil if the file was removed meanwhile.
func tryLockNodeFile(path string) (*nodeFile, error) {
	created, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = created.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err //nolint:wrapcheck // complete
	}
	f, size, err := mapfile.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // removed after it was found
	}
	if err != nil {
		return nil, err
	}
	if err := mapfile.Lock(f, lockOffset); err != nil {
		if errors.Is(err, mapfile.ErrLocked) {
			err = inUseBy(path)
		}
		return nil, errors.Join(err, f.Close())
	}
	switch status, err := mapfile.Stat(f); {
	case err != nil:
		return nil, errors.Join(err, f.Close())
	case status.Links == 0:
		return nil, f.Close()
	}
	return &nodeFile{file: f, fresh: size == 0}, nil
}

// inUseBy returns the error for a file that a node has locked.
func inUseBy(path string) error {
	ref, err := readNodeFile(path)
	if err != nil {
		return fmt.Errorf("%w: another process is creating a node with it", ring.ErrInUse)
	}
	return fmt.Errorf("%w by the node %s (%s)", ring.ErrInUse, ref.GetPath(), ref.GetNid())
}

// announce makes a node known to clients that have mapped the ring.
func (own *nodeFile) announce(ref *nodev1.NodeRef) error {
	encoded, err := proto.Marshal(ref)
	if err != nil {
		return fmt.Errorf("encode the node's reference: %w", err)
	}
	b := binary.LittleEndian.AppendUint32(nil, crc32.Checksum(encoded, crc32.MakeTable(crc32.Castagnoli)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(encoded))) //nolint:gosec // small
	if _, err := own.file.WriteAt(append(b, encoded...), 0); err != nil {
		return fmt.Errorf("write the node's reference: %w", err)
	}
	return nil
}

// close releases the lock.
func (own *nodeFile) close() error { return own.file.Close() }

// giveUp removes the file, if no node was ever announced in it, and releases the lock.
func (own *nodeFile) giveUp() error {
	var err error
	if own.fresh {
		err = os.Remove(own.file.Name())
	}
	return errors.Join(err, own.close())
}

// readNodeFile returns the reference of the node that has, or had, a file.
func readNodeFile(path string) (*nodev1.NodeRef, error) {
	f, size, err := mapfile.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	b := make([]byte, min(size, refHeader+maxRef))
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err //nolint:wrapcheck // complete
	}
	if len(b) < refHeader {
		return nil, fmt.Errorf("%w: %s is too short", ring.ErrFormat, path)
	}
	length := binary.LittleEndian.Uint32(b[4:])
	if int64(length) > int64(len(b)-refHeader) {
		return nil, fmt.Errorf("%w: %s is too short", ring.ErrFormat, path)
	}
	encoded := b[refHeader:][:length]
	if crc32.Checksum(encoded, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(b) {
		return nil, fmt.Errorf("%w: %s has a wrong checksum", ring.ErrFormat, path)
	}
	ref := &nodev1.NodeRef{}
	if err := proto.Unmarshal(encoded, ref); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ring.ErrFormat, path, err)
	}
	return ref, nil
}
