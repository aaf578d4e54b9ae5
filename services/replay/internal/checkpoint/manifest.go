package checkpoint

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	replayv1 "github.com/raylink/raylink/gen/raylink/replay/v1"
)

// The manifest's file is JSON: an object with the checksum of the bytes of its second value.
const (
	manifestBegin  = `{"crc32c": "`
	manifestMiddle = "\",\n\"checkpoint\": "
	manifestEnd    = "}\n"
	hexDigits      = 8
)

func encodeManifest(m *replayv1.CheckpointManifest) ([]byte, error) {
	compact, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the manifest: %w", err)
	}
	var text bytes.Buffer
	if err := json.Indent(&text, compact, "", "  "); err != nil {
		return nil, fmt.Errorf("encode the manifest: %w", err)
	}
	return sealManifest(text.Bytes()), nil
}

// sealManifest adds its checksum to the text of a manifest.
func sealManifest(text []byte) []byte {
	return fmt.Appendf(nil, "%s%08x%s%s%s", manifestBegin, crc32.Checksum(text, castagnoli), manifestMiddle, text, manifestEnd)
}

// parseManifest reads an untrusted manifest. It returns one whose file names are those of this
// package.
func parseManifest(text []byte) (*replayv1.CheckpointManifest, error) {
	const begin = len(manifestBegin) + hexDigits + len(manifestMiddle)
	sealed := len(text) >= begin+len(manifestEnd) && bytes.HasPrefix(text, []byte(manifestBegin)) && bytes.HasSuffix(text, []byte(manifestEnd)) &&
		bytes.Equal(text[begin-len(manifestMiddle):begin], []byte(manifestMiddle))
	if !sealed {
		return nil, fmt.Errorf("%w: %s has no checksum, or is truncated", ErrDamaged, manifestName)
	}
	content := text[begin : len(text)-len(manifestEnd)]
	if want, got := string(text[len(manifestBegin):][:hexDigits]), checksumText(content); want != got {
		return nil, fmt.Errorf("%w: the checksum of %s is %s instead of %s", ErrDamaged, manifestName, got, want)
	}
	m := &replayv1.CheckpointManifest{}
	// The version first: another may have fields that this one does not know.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(content, m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, manifestName, err)
	}
	if m.GetVersion() != Version {
		return nil, fmt.Errorf("%w: its format has the version %d, and this program reads version %d", ErrDamaged, m.GetVersion(), Version)
	}
	if err := protojson.Unmarshal(content, m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, manifestName, err)
	}
	return m, checkManifest(m)
}

func checksumText(b []byte) string {
	sum := crc32.Checksum(b, castagnoli)
	return hex.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}) //nolint:gosec // its bytes
}

func checkManifest(m *replayv1.CheckpointManifest) error {
	if name := m.GetFile().GetName(); name != rowsName {
		return fmt.Errorf("%w: in %s, the file of the rows is %q instead of %q", ErrDamaged, manifestName, name, rowsName)
	}
	if m.GetRows() > min(m.GetNext(), m.GetCapacity()) {
		return fmt.Errorf("%w: in %s, there are %d rows below %d, and room for %d", ErrDamaged, manifestName, m.GetRows(), m.GetNext(), m.GetCapacity())
	}
	for i, t := range m.GetTables() {
		if name := t.GetFile().GetName(); name != tableName(i) {
			return fmt.Errorf("%w: in %s, the file of table %q is %q instead of %q", ErrDamaged, manifestName, t.GetConfig().GetName(), name, tableName(i))
		}
		for _, other := range m.GetTables()[:i] {
			if other.GetConfig().GetName() == t.GetConfig().GetName() {
				return fmt.Errorf("%w: in %s, there are two tables %q", ErrDamaged, manifestName, t.GetConfig().GetName())
			}
		}
	}
	if err := m.GetMade().CheckValid(); err != nil || m.GetMade().AsTime().Before(time.Unix(0, 0)) {
		return fmt.Errorf("%w: in %s, the time is invalid: %v", ErrDamaged, manifestName, m.GetMade())
	}
	return nil
}
