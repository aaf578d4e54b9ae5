// Package durable lets the storages of a program be durable: they keep their writes in a directory,
// in Pebble. Package raylink imports it. A program that only joins a system (package join) does not
// link Pebble, and hosts storages in memory alone, unless it imports this package:
//
//	import _ "github.com/raylink/raylink/services/storage/durable"
package durable

import (
	"github.com/raylink/raylink/services/storage/internal/changelog"
	"github.com/raylink/raylink/services/storage/internal/writelog"
)

//nolint:gochecknoinits // the import itself is the request
func init() {
	changelog.Open = func(o changelog.Options, restore func(changelog.Record) error) (changelog.Log, error) {
		log, err := writelog.Open(writelog.Options{Dir: o.Dir, Sync: o.Sync, Logger: o.Logger}, restore)
		if err != nil {
			return nil, err
		}
		return log, nil
	}
}
