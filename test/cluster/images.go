// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

const (
	// WorkloadImage is on every node. Its program, test/cluster/workload, serves and
	// dials, and makes known system calls. It runs as user 65532.
	WorkloadImage = "localhost/workload:1"
	// pauseImage is what holds a pod's namespaces.
	pauseImage = "localhost/pause:1"

	// pauseCommand is the command line of its process, as in /proc.
	pauseCommand = "/workload\x00pause\x00"

	workload  = "workload"
	unlimited = "unlimited"
)

// buildOwn builds the programs of this package that machines need.
func buildOwn(ctx context.Context, folder string) error {
	for _, name := range []string{workload, unlimited} {
		if err := buildProgram(ctx, folder, name); err != nil {
			return err
		}
	}
	return nil
}

// buildProgram builds a program of a folder of this package.
func buildProgram(ctx context.Context, folder, name string) error {
	top, err := root()
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(folder, name), "./test/cluster/"+name)
	command.Dir = top
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", name, err, said)
	}
	return nil
}

// buildWorkload makes the images of this package, and gathers those of the options.
func (c *Cluster) buildWorkload(ctx context.Context) error {
	images := filepath.Join(c.place.dir, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		return err
	}
	program := filepath.Join(c.programs.own, workload)
	for name, arguments := range map[string][]string{
		WorkloadImage: {"-cmd", "sleep"},
		pauseImage:    {"-cmd", "pause"},
	} {
		tar := filepath.Join(images, path.Base(name)+".tar")
		if err := BuildImage(ctx, name, tar, program, arguments...); err != nil {
			return err
		}
	}
	for _, tar := range c.options.Images {
		if _, err := c.keepImage(tar); err != nil {
			return err
		}
	}
	return nil
}

// BuildImage makes a tar of an image of one program with bin/image, for this machine's
// kind of processor. The arguments are more of bin/image's own, such as "-cmd", "serve".
func BuildImage(ctx context.Context, name, tar, program string, arguments ...string) error {
	top, err := root()
	if err != nil {
		return err
	}
	tool := filepath.Join(top, "bin", "image")
	if _, err := os.Stat(tool); err != nil {
		return fmt.Errorf("building the image %s: %w; build the tool by: make bin/image", name, err)
	}
	inside := "/" + filepath.Base(program)
	args := []string{"build", "-platform", "linux/" + runtime.GOARCH, "-add", inside + "=" + program, "-entrypoint", inside, "-tar", tar, "-name", name}
	command := exec.CommandContext(ctx, tool, append(args, arguments...)...)
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building the image %s: %w\n%s", name, err, said)
	}
	return nil
}

// keepImage puts an image where machines see it, and returns its name there.
func (c *Cluster) keepImage(tar string) (string, error) {
	name := filepath.Base(tar)
	into := filepath.Join(c.place.dir, "images", name)
	if err := copyFile(tar, into); err != nil {
		return "", fmt.Errorf("taking the image %s: %w", tar, err)
	}
	return name, nil
}

// copyFile replaces a file by a copy of another.
func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}

// importAll gives the node all images. Those that it has already cost next to
// nothing.
func (n *Node) importAll(ctx context.Context) error {
	return n.importInto(ctx, containerdSocket)
}

func (n *Node) importInto(ctx context.Context, socket string) error {
	tars, err := fs.Glob(os.DirFS(filepath.Join(n.cluster.place.dir, "images")), "*.tar")
	if err != nil {
		return err
	}
	slices.Sort(tars)
	for _, tar := range tars {
		if _, err := n.Run(ctx, importCommand(socket, tar)...); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) importImage(ctx context.Context, tar string) error {
	_, err := n.Run(ctx, importCommand(containerdSocket, tar)...)
	return err
}

func importCommand(socket, tar string) []string {
	return []string{controlplane.Ctr, "--address=" + socket, "--namespace=k8s.io", "images", "import", "--local",
		"--label=io.cri-containerd.image=managed", "/opt/images/" + tar}
}

// storeConfig is of a containerd that only keeps images. Its snapshots are those of
// config/containerd.toml.
const storeConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]

[grpc]
  address = "%[2]s"
`

// prepareImages has a containerd of its own, on this node, take all images, and gives
// use the host's path of its root: a machine that has it as /var/lib/containerd need not
// unpack them. name is that of a folder below /var until then.
func (n *Node) prepareImages(ctx context.Context, name string, use func(root string) error) (err error) {
	m, err := n.running()
	if err != nil {
		return err
	}
	folder := filepath.Join(n.cluster.place.dir, "machines", n.Name, "var", name)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	inside, socket, program := "/var/"+name, "/run/"+name+".sock", controlplane.Containerd+"-"+name
	if err := os.WriteFile(filepath.Join(folder, "config.toml"), fmt.Appendf(nil, storeConfig, inside, socket), 0o600); err != nil {
		return err
	}
	command := []string{controlplane.Containerd, "--config=" + inside + "/config.toml"}
	err = m.start(ctx, program, command, func(ctx context.Context) error { return m.connects(ctx, socket) })
	if err != nil {
		return err
	}
	if err := errors.Join(n.importInto(ctx, socket), m.stop(ctx, program)); err != nil {
		return err
	}
	return use(filepath.Join(folder, "root"))
}

// mustSub is the folder of static configuration.
func mustSub() fs.FS {
	sub, err := fs.Sub(configs, "config")
	if err != nil {
		panic(err) // only for a name that is no path
	}
	return sub
}
