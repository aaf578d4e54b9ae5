//go:build !linux

package rundir

import "errors"

// watchFile fails: no other system announces that a file is closed.
func watchFile(string) (watch, error) { return nil, errors.ErrUnsupported }
