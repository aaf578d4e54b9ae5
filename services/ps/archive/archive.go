// Package archive keeps versions of parameters in a directory of ordinary files, for a time when no
// system runs, and for other programs.
//
// A tag's newest version is a pair of files. The tag's slashes become folders, and unusual
// characters are escaped:
//
//	policy/best.safetensors   the content, if it is in the safetensors format; else policy/best.bin
//	policy/best.json          the version: tag, id, size, info, time of the push, checksum
//
// Content never changes in its file: a new version is written beside the old one and renamed once
// it is on the disk. So whatever happens to a writer, [Read] returns the old version or the new
// one, complete. Names that begin with a dot belong to writers; the next [Write] of the tag removes
// those that a killed one left.
//
// A safetensors file without its JSON is a version too: that is how other programs hand over
// parameters.
package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/services/ps/safetensors"
)

// Errors that a caller may act on. They are returned wrapped.
var (
	// ErrTag means that a tag is invalid.
	ErrTag = errors.New("invalid tag")
	// ErrVersion means that a version cannot be written: it does not fit its content, or its
	// description is too large.
	ErrVersion = errors.New("invalid version")
	// ErrNoTag means that a directory has no version of a tag.
	ErrNoTag = errors.New("nothing was saved under the tag")
	// ErrDamaged means that files are not what was written.
	ErrDamaged = errors.New("damaged files")
	// ErrNoRoom means that the file system lacks space. What was saved before is still there.
	ErrNoRoom = errors.New("no space left")
)

// Permissions are up to the user's umask, because saved parameters are for other programs.
const (
	filePermissions   = 0o666
	folderPermissions = 0o777
)

// Write saves a version and its content in a directory, which it creates if necessary, in place of
// the tag's previous version. The checksum of the version must be that of the content. It returns
// when both files are on the disk. If it fails, the previous version is there as before.
//
// Calls for one directory wait for each other, also those of other processes. Content is not
// copied.
func Write(directory string, version *psv1.Version, content []byte) error {
	if err := write(directory, version, content); err != nil {
		return fmt.Errorf("save tag %q in %s: %w", version.GetTag(), directory, err)
	}
	return nil
}

func write(directory string, version *psv1.Version, content []byte) (err error) {
	where, err := locate(version.GetTag())
	if err != nil {
		return err
	}
	if size := uint64(len(content)); version.GetSize() != size {
		return fmt.Errorf("%w: it has %d bytes, but the content %d", ErrVersion, version.GetSize(), size)
	}
	if sum := checksum(content); version.GetChecksum() != sum {
		return fmt.Errorf("%w: its checksum is %08x, but that of the content %08x", ErrVersion, version.GetChecksum(), sum)
	}
	described, err := describe(version, format(content), strings.ToLower(rand.Text()))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(directory, folderPermissions); err != nil { //nolint:gosec // the caller chose it
		return err
	}
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	unlock, err := lock(root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	w := &writer{root: root, where: where, described: described}
	err = w.begin(content)
	if err == nil {
		err = w.commit()
	}
	if err != nil {
		err = errors.Join(err, w.abandon())
		return withRoom(err, directory, uint64(len(content)))
	}
	if err := w.finish(); err != nil {
		return fmt.Errorf("the version is saved, but its content is not in the right file: %w", err)
	}
	return nil
}

// format returns the format of content.
func format(content []byte) string {
	if _, err := safetensors.Parse(content); err == nil {
		return formatSafetensors
	}
	return formatBytes
}

// withRoom adds to an error that is a lack of space how much there is and was needed.
func withRoom(err error, directory string, size uint64) error {
	if !outOfSpace(err) {
		return err
	}
	return fmt.Errorf("%w: the content has %d bytes, and the file system of %s has %d bytes left: remove files, or use another directory: %w",
		ErrNoRoom, size, directory, freeSpace(directory), err)
}

// writer is one call of [Write]. Its steps are the states in which a crash can leave the files:
//
//	begin    both files are complete beside the old ones, under names with the write's id
//	commit   the new JSON has its name. From here on the new version is the tag's: Read finds the
//	         content under the name with the id that the JSON has
//	finish   the content has its name, in place of the old content
type writer struct {
	root      *os.Root
	where     location
	described *description
	// folders are those that begin created, the innermost last.
	folders []string
}

// begin writes both files beside those of the previous version.
func (w *writer) begin(content []byte) error {
	if err := w.makeFolders(); err != nil {
		return err
	}
	if err := settle(w.root, w.where); err != nil {
		return err
	}
	for _, format := range formats {
		if info, err := w.root.Lstat(w.where.content(format)); err == nil && info.IsDir() {
			return fmt.Errorf("%s is a folder", w.where.content(format))
		}
	}
	text, err := w.described.marshal()
	if err != nil {
		return err
	}
	if err := create(w.root, w.where.part(w.described.Write), content); err != nil {
		return err
	}
	if err := create(w.root, w.where.partOfJSON(w.described.Write), text); err != nil {
		return err
	}
	// Its name has to be on the disk before the JSON that refers to it.
	return syncFolder(w.root, w.where.folder)
}

func (w *writer) makeFolders() error {
	var folder string
	for name := range strings.SplitSeq(w.where.folder, "/") {
		parent := path.Clean(folder)
		folder = path.Join(folder, name)
		switch err := w.root.Mkdir(folder, folderPermissions); {
		case errors.Is(err, fs.ErrExist):
			continue
		case err != nil:
			return err
		}
		w.folders = append(w.folders, folder)
		if err := syncFolder(w.root, parent); err != nil {
			return err
		}
	}
	return nil
}

// abandon removes what begin made.
func (w *writer) abandon() error {
	err := errors.Join(
		remove(w.root, w.where.part(w.described.Write)),
		remove(w.root, w.where.partOfJSON(w.described.Write)),
	)
	for _, folder := range slices.Backward(w.folders) {
		// Not empty if another program has put a file there.
		_ = w.root.Remove(folder)
	}
	return err
}

func (w *writer) commit() error {
	return w.root.Rename(w.where.partOfJSON(w.described.Write), w.where.json())
}

func (w *writer) finish() error {
	if err := syncFolder(w.root, w.where.folder); err != nil {
		return err
	}
	return settle(w.root, w.where)
}

// settle completes or removes what writes of a tag have left: the content to which the JSON refers
// gets its name, other files of writers are removed. The caller has the directory's lock.
func settle(root *os.Root, where location) error {
	left, err := leftovers(root, where)
	if err != nil || len(left) == 0 {
		return err
	}
	committed := ""
	if d, _, err := readDescription(root, where); err == nil {
		committed = where.part(d.Write)
		if slices.Contains(left, committed) {
			if err := root.Rename(committed, where.content(d.Format)); err != nil {
				return err
			}
			for _, other := range formats {
				if other != d.Format {
					err = errors.Join(err, remove(root, where.content(other)))
				}
			}
			if err != nil {
				return err
			}
		}
	}
	for _, name := range left {
		if name != committed {
			err = errors.Join(err, remove(root, name))
		}
	}
	return errors.Join(err, syncFolder(root, where.folder))
}

// leftovers returns the paths of the files of writers of a tag.
func leftovers(root *os.Root, where location) ([]string, error) {
	entries, err := readFolder(root, where.folder)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, e := range entries {
		if stem, _, ok := parsePart(e.Name()); ok && stem == where.stem {
			left = append(left, path.Join(where.folder, e.Name()))
		}
	}
	return left, nil
}

func readFolder(root *os.Root, folder string) (entries []fs.DirEntry, err error) {
	f, err := root.Open(folder)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.ReadDir(-1)
}

// create writes a new file and waits until it is on the disk.
func create(root *os.Root, name string, content []byte) error {
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, filePermissions)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func remove(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncFolder waits until a folder's names are on the disk.
func syncFolder(root *os.Root, folder string) error {
	f, err := root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Read returns a tag's saved version, and its content, which is mapped and read-only: it is valid
// until release is called, and its file must not be modified until then (it may be replaced or
// removed). The content's checksum has been verified.
//
// A version without JSON has no id and time; its info is the metadata of the safetensors file.
func Read(directory, tag string) (version *psv1.Version, content []byte, release func() error, err error) {
	version, content, release, err = read(directory, tag)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read tag %q in %s: %w", tag, directory, err)
	}
	return version, content, release, nil
}

func read(directory, tag string) (_ *psv1.Version, _ []byte, _ func() error, err error) {
	where, err := locate(tag)
	if err != nil {
		return nil, nil, nil, err
	}
	root, err := os.OpenRoot(directory)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	// Read takes no lock, so it may find the files of two versions. Then the JSON has changed.
	const attempts = 100
	previous := ""
	for range attempts {
		d, text, descriptionErr := readDescription(root, where)
		if errors.Is(descriptionErr, fs.ErrNotExist) {
			return readUndescribed(root, where, directory)
		}
		if descriptionErr != nil {
			return nil, nil, nil, descriptionErr
		}
		content, release, contentErr := readContent(root, where, d)
		if contentErr == nil {
			return d.version(), content, release, nil
		}
		if text == previous {
			return nil, nil, nil, fmt.Errorf("%w: if another program has written it, remove %s", contentErr, where.json())
		}
		previous = text
	}
	return nil, nil, nil, errors.New("it was saved again and again meanwhile: try again")
}

// readContent maps and checks the content of a version.
func readContent(root *os.Root, where location, d *description) ([]byte, func() error, error) {
	name := where.part(d.Write)
	content, release, err := mapFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		name = where.content(d.Format)
		content, release, err = mapFile(root, name)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%w: there is %s, but no %s", ErrDamaged, where.json(), name)
	case err != nil:
		return nil, nil, err
	}
	if size := uint64(len(content)); size != d.Size {
		err = fmt.Errorf("%w: %s has %d bytes, not %d", ErrDamaged, name, size, d.Size)
	} else if sum := checksum(content); sum != uint32(d.Checksum) {
		err = fmt.Errorf("%w: %s has the checksum %08x, not %08x", ErrDamaged, name, sum, uint32(d.Checksum))
	}
	if err != nil {
		return nil, nil, errors.Join(err, release())
	}
	return content, release, nil
}

// readUndescribed reads a safetensors file without JSON.
func readUndescribed(root *os.Root, where location, directory string) (*psv1.Version, []byte, func() error, error) {
	name := where.content(formatSafetensors)
	content, release, err := mapFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		tags, err := List(directory)
		if err != nil {
			return nil, nil, nil, err
		}
		return nil, nil, nil, fmt.Errorf("%w; there are %s", ErrNoTag, quoteAll(tags))
	}
	if err != nil {
		return nil, nil, nil, err
	}
	file, err := safetensors.Parse(content)
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrDamaged, name, err), release())
	}
	version := &psv1.Version{
		Tag: where.tag, Size: uint64(len(content)), Checksum: checksum(content), Info: file.Metadata(),
	}
	return version, content, release, nil
}

// quoteAll returns tags for an error text.
func quoteAll(tags []string) string {
	const most = 20
	if len(tags) == 0 {
		return "none"
	}
	var text strings.Builder
	for i, tag := range tags[:min(len(tags), most)] {
		if i > 0 {
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%q", tag)
	}
	if more := len(tags) - most; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	return text.String()
}

// List returns the tags that were saved in a directory, sorted. It does not read the files, nor
// follow symbolic links to folders.
func List(directory string) ([]string, error) {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", directory, err)
	}
	tags, err := list(root, ".", nil)
	if err := errors.Join(err, root.Close()); err != nil {
		return nil, fmt.Errorf("list %s: %w", directory, err)
	}
	slices.Sort(tags)
	return tags, nil
}

func list(root *os.Root, folder string, tags []string) ([]string, error) {
	entries, err := readFolder(root, folder)
	if err != nil {
		return nil, err
	}
	described, contents := make(map[string]bool), make(map[string]bool)
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() {
			if inner := path.Join(folder, name); mayHaveTags(inner) {
				if tags, err = list(root, inner, tags); err != nil {
					return nil, err
				}
			}
			continue
		}
		if stem, isContent, ok := parsePart(name); ok && isContent {
			contents[stem] = true
		} else if stem, ok := strings.CutSuffix(name, jsonSuffix); ok {
			described[stem] = true
		} else if stem, ok := strings.CutSuffix(name, formatSuffixes[formatBytes]); ok {
			contents[stem] = true
		} else if stem, ok := strings.CutSuffix(name, formatSuffixes[formatSafetensors]); ok {
			contents[stem], described[stem] = true, true
		}
	}
	for stem := range described {
		if tag, ok := parseLocation(path.Join(folder, stem)); ok && contents[stem] {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}
