// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

var (
	// logs is the folder of what explains a failure.
	logs string
	// interrupted is a context that ends when somebody interrupts the tests.
	interrupted context.Context
)

// grace is how long tests may take to end after an interrupt, and to clean up.
const grace = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Orderly("scale", func(ctx context.Context) int {
		return harness.WithLogs("scale", func(folder string) int {
			logs, interrupted = folder, ctx
			return harness.RunTests(ctx, m, grace)
		})
	}))
}

// keepLog adds a manager's log to those of a failure.
func (w *world) keepLog(m *harness.Manager) {
	w.t.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(logs, "manager.log"), []byte(m.Log()), 0o644); err != nil {
			w.t.Error(err)
		}
	})
}
