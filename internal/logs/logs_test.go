package logs

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLevelsByPart(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "warn brain-warn tunnel-warn",
		"debug":                      "debug info warn brain-debug brain-info brain-warn tunnel-debug tunnel-info tunnel-warn",
		"error":                      "",
		"info,tunnel=debug":          "info warn brain-info brain-warn tunnel-debug tunnel-info tunnel-warn",
		"tunnel=debug , brain=error": "warn tunnel-debug tunnel-info tunnel-warn",
		"WARN":                       "warn brain-warn tunnel-warn",
	} {
		t.Run(text, func(t *testing.T) {
			levels, err := Parse(text, slog.LevelWarn)
			require.NoError(t, err)
			var out bytes.Buffer
			all := slog.New(NewHandler(&out, levels))
			for _, log := range []struct {
				logger *slog.Logger
				prefix string
			}{{all, ""}, {all.With(PartKey, Brain, "x", 1), "brain-"}, {all.With("y", 2).With(PartKey, Tunnel), "tunnel-"}} {
				log.logger.Debug(log.prefix + "debug")
				log.logger.Info(log.prefix + "info")
				log.logger.WithGroup("g").With(PartKey, "not that").Warn(log.prefix + "warn")
			}
			var got []string
			for line := range strings.Lines(out.String()) {
				assert.Contains(t, line, "time=")
				_, rest, _ := strings.Cut(line, "msg=")
				msg, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
				got = append(got, msg)
			}
			assert.Equal(t, want, strings.Join(got, " "))
		})
	}
}

func TestLevelsThatCantBeParsed(t *testing.T) {
	for text, says := range map[string]string{
		"loud": `"loud" is no level`, "info,": `"" is no level`, "tunel=debug": `"tunel" is no part: there are brain, host, session, tunnel`,
		"tunnel=": `"" is no level`, "=info": `"" is no part`, "debug;info": "no level", ",": `"" is no level`,
	} {
		_, err := Parse(text, slog.LevelWarn)
		require.ErrorContains(t, err, says, text)
	}
}

func TestWhatCameBeforeTheFileIsInIt(t *testing.T) {
	var late Late
	log := slog.New(NewHandler(&late, Levels{}))
	log.Info("early")
	var file bytes.Buffer
	late.Open(&file)
	log.Info("later")
	late.Close()
	log.Info("after")
	assert.Contains(t, file.String(), "early")
	assert.Contains(t, file.String(), "later")
	assert.NotContains(t, file.String(), "after")
}
