// Package suite runs containerd's own tests of a snapshotter against the daemon:
// `tests/containerd/suite/run`, as root, with Go. The cases of files that it has are
// in ../cases.rs too, which needs no Go.
package suite

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// As "overlayfs": a directory of a lower layer can't be renamed there, as in any
// overlay, and the suite knows that by the name.
func TestPeersync(t *testing.T) {
	testutil.RequiresRoot(t)
	testsuite.SnapshotterSuite(t, "overlayfs", daemon)
}

// daemon starts one with a store of its own.
func daemon(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	place, err := os.MkdirTemp("", "ps-")
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(place, "s.sock")
	config := filepath.Join(place, "config.toml")
	text := fmt.Sprintf("[store]\npath = %q\n[mount]\npath = %q\n[snapshotter]\nsocket = %q\n",
		root, filepath.Join(place, "mnt"), socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(os.Getenv("PEERSYNC"), "--config", config, "daemon")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	if err := answers(socket); err != nil {
		return nil, nil, err
	}
	conn, err := grpc.Dial("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	end := func() error {
		conn.Close()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := cmd.Wait(); err != nil {
			return err
		}
		return os.RemoveAll(place)
	}
	return proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "peersync"), end, nil
}

func answers(socket string) error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}
