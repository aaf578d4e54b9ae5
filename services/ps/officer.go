package ps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"connectrpc.com/connect/v2"
	"golang.org/x/sys/unix"

	nodev1 "github.com/raylink/raylink/gen/raylink/node/v1"
	psv1 "github.com/raylink/raylink/gen/raylink/ps/v1"
	"github.com/raylink/raylink/gen/raylink/ps/v1/psv1raylink"
	"github.com/raylink/raylink/internal/backoff"
	"github.com/raylink/raylink/services/ps/store"
)

// officer is an officer node. All of its state that needs locking is in its store.
type officer struct {
	psv1raylink.UnimplementedOfficerNode

	machine string
	store   *store.Store
	nonce   string

	// mu guards readers: mappings of this process, to serve clients that can't map the files.
	mu      sync.Mutex
	readers map[string]*store.Reader
}

// nonceFile is the file that proves that a client shares the officer's file system.
const nonceFile = "nonce"

func newOfficer(directory string, config *psv1.OfficerConfig) (*officer, error) {
	s, err := store.Open(directory, options(config.GetCaptain()))
	if err != nil {
		return nil, err
	}
	o := &officer{machine: config.GetMachine(), store: s, nonce: newNonce(), readers: make(map[string]*store.Reader)}
	path := filepath.Join(directory, nonceFile)
	if err := errors.Join(ignoreMissing(os.Remove(path)), writePrivate(path, o.nonce)); err != nil {
		return nil, errors.Join(fmt.Errorf("write nonce: %w", err), s.Close())
	}
	return o, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// writePrivate creates a file that only its user can access.
func writePrivate(path, content string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	return errors.Join(err, file.Close())
}

// close ends the officer gracefully: it deletes the store.
func (o *officer) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	errs := make([]error, 0, len(o.readers)+2)
	for _, r := range o.readers {
		errs = append(errs, r.Close())
	}
	return errors.Join(append(errs, o.store.Close(), o.store.Remove())...)
}

// Store stores a version from the captain.
func (o *officer) Store(_ context.Context, req *psv1.StoreRequest) (*psv1.StoreResponse, error) {
	stored, err := o.store.Put(req.GetVersion(), req.GetParameters())
	switch {
	case errors.Is(err, store.ErrVersion):
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error()).WithCause(err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return nil, connect.NewError(connect.CodeResourceExhausted, err.Error()).WithCause(err)
	case err != nil && !stored:
		return nil, err
	}
	return &psv1.StoreResponse{Stored: stored}, nil // failing to remove an old file is not fatal
}

// Pull returns the newest parameters of a tag, for clients that can't map them.
func (o *officer) Pull(_ context.Context, req *psv1.PullRequest) (*psv1.PullResponse, error) {
	version := o.store.Newest(req.GetTag())
	switch {
	case version == nil:
		return nil, noVersion(req.GetTag())
	case version.GetId() == req.GetHave():
		return &psv1.PullResponse{Version: version, Unchanged: true}, nil
	}
	r, err := o.reader(req.GetTag())
	if err != nil {
		return nil, err
	}
	p, err := r.Pull()
	if err != nil {
		return nil, err
	}
	res := &psv1.PullResponse{Version: p.Version(), Parameters: bytes.Clone(p.Bytes())}
	return res, p.Release()
}

func (o *officer) reader(tag string) (*store.Reader, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r, ok := o.readers[tag]; ok {
		return r, nil
	}
	r, err := store.NewReader(o.store.Directory(), tag)
	if err != nil {
		return nil, err
	}
	o.readers[tag] = r
	return r, nil
}

// GetID returns the id of a tag's newest version on this machine.
func (o *officer) GetID(_ context.Context, req *psv1.GetIDRequest) (*psv1.GetIDResponse, error) {
	return &psv1.GetIDResponse{Id: o.store.Last(req.GetTag())}, nil
}

// ListTags returns the newest version of each tag on this machine.
func (o *officer) ListTags(context.Context, *psv1.ListTagsRequest) (*psv1.ListTagsResponse, error) {
	return &psv1.ListTagsResponse{Versions: o.store.Versions()}, nil
}

// Directory returns the directory of the mapped files, and its nonce.
func (o *officer) Directory(context.Context, *psv1.DirectoryRequest) (*psv1.DirectoryResponse, error) {
	return o.directory(), nil
}

func (o *officer) directory() *psv1.DirectoryResponse {
	return &psv1.DirectoryResponse{Directory: o.store.Directory(), Nonce: o.nonce}
}

// enlist registers the officer with its captain. It retries while the captain is unavailable.
func (o *officer) enlist(ctx context.Context, captain *psv1raylink.Captain, self *nodev1.NodeRef) error {
	req := &psv1.EnlistRequest{Machine: o.machine, Officer: self, Directory: o.directory(), Versions: o.store.Versions()}
	pause := backoff.Backoff{First: firstPause, Max: maxPause}
	for {
		_, err := captain.Enlist(ctx, req)
		if err == nil {
			return nil
		}
		if connect.CodeOf(err) != connect.CodeUnavailable {
			return fmt.Errorf("enlist with the captain: %w", err)
		}
		if err := pause.Wait(ctx); err != nil {
			return err
		}
	}
}
