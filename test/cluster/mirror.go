// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// mirrorAddress is where nodes reach the mirror.
const mirrorAddress = "10.88.0.1:5000"

// hosts tells containerd where to pull images from, whatever registry their names
// begin with.
const hosts = `[host."http://` + mirrorAddress + `"]
  capabilities = ["pull", "resolve"]
`

// Mirror has all nodes pull images from a registry of this machine, which listens on
// address without TLS, such as 127.0.0.1:5000: an image ghcr.io/team/thing:v1 is its
// team/thing:v1. An image that a node has already is pulled where the pod says Always.
// Kubelet takes an image that it has pulled for one that needs the right to be pulled,
// and asks the registry again before a pod gets it by another name.
//
// It holds until the cluster stops, or the returned function is called.
func (c *Cluster) Mirror(address string) (end func() error, err error) {
	listener, err := c.fabric.listen(mirrorAddress)
	if err != nil {
		return nil, fmt.Errorf("listening for nodes that pull images: %w", err)
	}
	g := openGateway(listener, func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) })
	end = func() error { return errors.Join(c.writeHosts(false), g.close()) }
	if err := c.writeHosts(true); err != nil {
		return nil, errors.Join(fmt.Errorf("naming the mirror: %w", err), end())
	}
	c.gateways = append(c.gateways, g)
	return end, nil
}

// writeHosts names the mirror to the nodes' containerd, which looks at every pull, or
// takes the name away.
func (c *Cluster) writeHosts(mirrored bool) error {
	var errs []error
	for _, n := range c.nodes {
		folder, err := c.configOf(n.Name)
		if err != nil {
			return err
		}
		folder = filepath.Join(folder, "certs.d", "_default")
		if !mirrored {
			errs = append(errs, os.RemoveAll(folder))
			continue
		}
		errs = append(errs, os.MkdirAll(folder, 0o755), os.WriteFile(filepath.Join(folder, "hosts.toml"), []byte(hosts), 0o644))
	}
	return errors.Join(errs...)
}
