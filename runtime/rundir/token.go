package rundir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A system's generated token is published to the user's other processes on this machine at <runtime
// directory>/tokens/<Brain's address>. That is a symbolic link to the file `token` in the host
// directory of Brain's process, so the token is removed together with that directory, by Close or
// by a sweep.

const (
	tokensFolder = "tokens"
	tokenFile    = "token"
	// adminTokenFile is beside tokenFile.
	adminTokenFile = "admin-token"
	tokenBytes     = 32
	maxTokenFile   = 4 << 10
)

// ErrNoToken is the error for an address without a known token.
var ErrNoToken = errors.New("no token")

// NewToken generates a token of 256 random bits, in hexadecimal.
func NewToken() string {
	var b [tokenBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// PublishToken publishes a system's token to the user's other processes, under the addresses of its
// Brain, until the host directory is closed. It returns the path of the published token, for the
// first address. Earlier tokens for the addresses are replaced.
func (h *Host) PublishToken(token string, addresses ...string) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("rundir: publishing the token for Brain at %s: %w", strings.Join(addresses, " and "), err)
	}
	if err := writeNew(filepath.Join(h.path, tokenFile), token); err != nil {
		return fail(err)
	}
	folder := filepath.Join(filepath.Dir(h.path), tokensFolder)
	if err := makePrivate(folder); err != nil {
		return fail(err)
	}
	sweepTokens(folder)
	for _, address := range addresses {
		link := filepath.Join(h.path, "."+tokenFile)
		if err := os.Symlink(filepath.Join("..", filepath.Base(h.path), tokenFile), link); err != nil {
			return fail(err)
		}
		if err := os.Rename(link, filepath.Join(folder, tokenName(address))); err != nil {
			return fail(err)
		}
	}
	return filepath.Join(folder, tokenName(addresses[0])), nil
}

// PublishAdminToken puts a token beside the published one, for [FindAdminToken].
func (h *Host) PublishAdminToken(token string) error {
	if err := writeNew(filepath.Join(h.path, adminTokenFile), token); err != nil {
		return fmt.Errorf("rundir: publishing the admin token: %w", err)
	}
	return nil
}

// FindAdminToken returns the token with the role admin of the system whose Brain is at the address,
// HOST:PORT. The error is [ErrNoToken] if this user has started no Brain with such a token there.
func FindAdminToken(address string) (string, error) {
	_, path, err := FindToken(address)
	if err != nil {
		return "", err
	}
	file, err := filepath.EvalSymlinks(path) // FindToken has verified where it leads
	if err != nil {
		return "", fmt.Errorf("rundir: reading the admin token for Brain at %s: %w", address, err)
	}
	token, err := readToken(filepath.Join(filepath.Dir(file), adminTokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w with the role admin is at Brain at %s", ErrNoToken, address)
	}
	return token, err
}

// sweepTokens removes the links whose processes have ended.
func sweepTokens(folder string) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if path := filepath.Join(folder, entry.Name()); entry.Type() == fs.ModeSymlink {
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(path) // the next PublishToken tries again
			}
		}
	}
}

// tokenName encodes an address as a file name.
func tokenName(address string) string { return url.PathEscape(address) }

// FindToken returns the published token of the system whose Brain is at the address, HOST:PORT, and
// the file that contains it. The error is [ErrNoToken] if this user has published none on this
// machine.
func FindToken(address string) (token, path string, err error) {
	dirs := runtimeDirs()
	for _, name := range aliasesOf(address) {
		for _, dir := range dirs {
			path := filepath.Join(dir, tokensFolder, tokenName(name))
			token, err := readPublished(dir, path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return "", path, fmt.Errorf("rundir: reading the token for Brain at %s: %w", address, err)
			}
			return token, path, nil
		}
	}
	text := "this user has started no Brain there on this machine"
	if known := publishedAddresses(dirs); len(known) > 0 {
		text += ", but at " + strings.Join(known, ", ")
	}
	return "", "", fmt.Errorf("%w for Brain at %s is found in %s: %s",
		ErrNoToken, address, filepath.Join(RuntimeDir(), tokensFolder), text)
}

// PublishedBrains returns, sorted, one address of each Brain of this user on this machine that has
// generated its token. It may include a Brain that was killed, until the next run sweeps its files.
func PublishedBrains() []string {
	var addresses, tokens []string
	for _, address := range publishedAddresses(runtimeDirs()) {
		token, _, err := FindToken(address)
		if err != nil || slices.Contains(tokens, token) { // one Brain publishes all of its addresses
			continue
		}
		addresses, tokens = append(addresses, address), append(tokens, token)
	}
	return addresses
}

// Tokens returns the published tokens of all of this user's systems on this machine.
func Tokens() []string {
	var tokens []string
	for _, address := range publishedAddresses(runtimeDirs()) {
		if token, _, err := FindToken(address); err == nil && !slices.Contains(tokens, token) {
			tokens = append(tokens, token)
		}
	}
	return tokens
}

// publishedAddresses are the addresses of the Brains whose tokens can be read.
func publishedAddresses(dirs []string) []string {
	var known []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(filepath.Join(dir, tokensFolder))
		if err != nil || checkPrivate(dir) != nil {
			continue
		}
		for _, entry := range entries {
			path := filepath.Join(dir, tokensFolder, entry.Name())
			if address, err := url.PathUnescape(entry.Name()); err == nil && !slices.Contains(known, address) {
				if _, err := readPublished(dir, path); err == nil {
					known = append(known, address)
				}
			}
		}
	}
	slices.Sort(known)
	return known
}

// readPublished reads the target of a published link, without trusting anything that another user
// could have put there.
func readPublished(dir, path string) (string, error) {
	if err := checkPrivate(dir); err != nil {
		return "", errNotThere(err)
	}
	if err := checkPrivate(filepath.Join(dir, tokensFolder)); err != nil {
		return "", errNotThere(err)
	}
	link, err := os.Readlink(path)
	if err != nil {
		return "", err
	}
	host := filepath.Base(filepath.Dir(link))
	if link != filepath.Join("..", host, tokenFile) || !isShortID(host) {
		return "", fmt.Errorf("%s leads to %s, where no token is", path, link)
	}
	if err := checkPrivate(filepath.Join(dir, host)); err != nil {
		return "", err
	}
	return readToken(filepath.Join(dir, host, tokenFile))
}

// errNotThere adds fs.ErrNotExist to the error for a directory that belongs to another user.
func errNotThere(err error) error {
	if errors.Is(err, ErrNotPrivate) {
		return errors.Join(err, fs.ErrNotExist)
	}
	return err
}

// readToken reads a file that must be accessible to this user only.
func readToken(path string) (string, error) {
	fd, err := open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), path)
	defer func() { _ = file.Close() }() // only read
	info, err := file.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is %w: it is not a file, but %s", path, ErrNotPrivate, describe(info.Mode()))
	case ownerOf(info) != os.Geteuid():
		return "", fmt.Errorf("%s is %w: it belongs to user %d, not to %d", path, ErrNotPrivate, ownerOf(info), os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return "", fmt.Errorf("%s is %w: its mode is %#o, so others may know the token in it; remove the file, and Brain makes another token when it starts",
			path, ErrNotPrivate, info.Mode().Perm())
	case info.Size() > maxTokenFile:
		return "", fmt.Errorf("%s holds %d bytes, more than a token has", path, info.Size())
	}
	b, err := io.ReadAll(io.LimitReader(file, maxTokenFile))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("%s is empty: remove it, and Brain makes another token when it starts", path)
	}
	return token, nil
}

// writeNew creates a file with one line, completely or not at all. It fails if the file exists.
func writeNew(path, line string) error {
	file, err := os.CreateTemp(filepath.Dir(path), hiddenPrefix+"*") // created with mode 0600
	if err != nil {
		return err
	}
	_, err = file.WriteString(line + "\n")
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Link(file.Name(), path)
	}
	return errors.Join(err, os.Remove(file.Name()))
}

// KeptToken returns the token in the file `token` of a data directory, and generates it if there is
// none: a Brain that is restarted on the same data has the token that its hosts know.
func KeptToken(data string) (string, error) {
	path := filepath.Join(data, tokenFile)
	token, err := readToken(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(data, privateDir); err == nil {
			err = writeNew(path, NewToken())
		}
		if err == nil || errors.Is(err, fs.ErrExist) {
			token, err = readToken(path)
		}
	}
	if err != nil {
		return "", fmt.Errorf("rundir: reading the token that Brain keeps: %w", err)
	}
	return token, nil
}

// aliasesOf returns the addresses under which the Brain at the address may have published its
// token: the address itself and, if it is one of this machine, the same port on loopback and on all
// interfaces.
func aliasesOf(address string) []string {
	var names []string
	add := func(host, port string) {
		if name := net.JoinHostPort(host, port); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	add(host, port)
	if n, err := strconv.Atoi(port); err == nil {
		port = strconv.Itoa(n)
		add(host, port)
	}
	ip := net.ParseIP(host)
	switch {
	case strings.EqualFold(host, "localhost"), host == "", ip != nil && ip.IsLoopback():
		add("127.0.0.1", port)
		add("::1", port)
		add("localhost", port)
	case !isOurs(host, ip):
		return names
	}
	add("0.0.0.0", port)
	add("::", port)
	return names
}

// isOurs reports whether a host, which is an IP address or a host name, is this machine.
func isOurs(host string, ip net.IP) bool {
	if ip == nil {
		own, err := os.Hostname()
		return err == nil && strings.EqualFold(own, host)
	}
	addresses, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addresses, func(a net.Addr) bool {
		network, ok := a.(*net.IPNet)
		return ok && network.IP.Equal(ip)
	})
}
