//go:build !linux

package nettest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// supported returns the reason why this system has no namespaces.
func supported() error {
	return fmt.Errorf("network namespaces need Linux, and this is %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// enter is not called where there are no namespaces.
func enter(string, func() error) error { return supported() }

// openTAP is not called where there are no namespaces.
func openTAP(string) (*os.File, error) { return nil, supported() }
