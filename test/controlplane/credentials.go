// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/rand"
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/podconfigmap/podconfigmap-controller/test/pki"
)

const clusterName = "podconfigmap-controlplane"

// credentials are the keys and tokens of a control plane, in files of one folder.
type credentials struct {
	folder     string
	adminToken string
	kcmToken   string
}

func (c credentials) tokens() string     { return filepath.Join(c.folder, "tokens.csv") }
func (c credentials) signingKey() string { return filepath.Join(c.folder, "sa.key") }
func (c credentials) publicKey() string  { return filepath.Join(c.folder, "sa.pub") }

// authority is the certificate of who signed the API server's.
func (c credentials) authority() string { return filepath.Join(c.folder, "ca.crt") }

// newCredentials reads the credentials in folder, or makes them when there are none.
func newCredentials(folder string) (credentials, error) {
	c := credentials{folder: folder}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return c, fmt.Errorf("making the folder of credentials: %w", err)
	}
	_, err := os.Stat(c.tokens())
	if errors.Is(err, fs.ErrNotExist) {
		// The tokens come last: their file says that all is there.
		err = errors.Join(c.writeKeys(), c.writeTokens())
	}
	if err != nil {
		return c, fmt.Errorf("making credentials in %q: %w", folder, err)
	}
	return c, c.readTokens()
}

// writeKeys makes the keys that sign the tokens of ServiceAccounts, and what the API
// server shows its clients: it would make an RSA key for itself, each time.
func (c credentials) writeKeys() error {
	authority, err := pki.NewAuthority(clusterName)
	if err != nil {
		return err
	}
	serving, err := authority.Issue(apiServer, "", []netip.Addr{netip.MustParseAddr(loopback), netip.MustParseAddr(serviceAddress)},
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(c.authority(), authority.PEM, 0o644),
		serving.Write(c.folder, "apiserver"), // the names that --cert-dir has the API server look for
		pki.WriteAccountKeys(c.folder),
	)
}

// writeTokens writes lines of token, user, uid and groups, the format of
// --token-auth-file.
func (c credentials) writeTokens() error {
	text := fmt.Sprintf("%s,admin,admin,system:masters\n%s,system:kube-controller-manager,kcm\n", rand.Text(), rand.Text())
	return os.WriteFile(c.tokens(), []byte(text), 0o600)
}

func (c *credentials) readTokens() error {
	f, err := os.Open(c.tokens())
	if err != nil {
		return fmt.Errorf("opening the tokens: %w", err)
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.FieldsPerRecord = -1 // groups may be absent
	lines, err := r.ReadAll()
	if err != nil {
		return fmt.Errorf("reading the tokens in %q: %w", c.tokens(), err)
	}
	if len(lines) != 2 {
		return fmt.Errorf("reading the tokens in %q: %d lines instead of 2", c.tokens(), len(lines))
	}
	c.adminToken, c.kcmToken = lines[0][0], lines[1][0]
	return nil
}

// writeKubeconfig writes a kubeconfig for one user of the server.
func writeKubeconfig(path, server string, ca []byte, token string) error {
	config := clientcmdapi.NewConfig()
	config.Clusters[clusterName] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[clusterName] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[clusterName] = &clientcmdapi.Context{Cluster: clusterName, AuthInfo: clusterName}
	config.CurrentContext = clusterName
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("writing the kubeconfig %q: %w", path, err)
	}
	return nil
}

// claims are those of the ports that this process has been told of, kept until it ends.
var claims sync.Map

// claim tells whether no process has been told of a port that lives, this one neither:
// tests of several packages look for ports at the same time. It is a socket of the
// kernel's own names (unix(7), abstract), which goes with its process.
func claim(port int) bool {
	l, err := net.Listen("unix", fmt.Sprintf("@podconfigmap-controller/port/%d", port))
	if err != nil {
		return false
	}
	claims.Store(port, l) // or it would be closed as garbage
	return true
}

// freePorts returns n loopback ports that nothing listens on. They are below
// the range that the kernel gives to outgoing connections (32768 and up): a
// client that retries while the API server is down could otherwise get the
// server's own port, and keep it from starting again.
func freePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	for range 1000 {
		if len(ports) == n {
			return ports, nil
		}
		port := 20000 + mathrand.IntN(12000)
		l, err := net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		if claim(port) {
			ports = append(ports, port)
		}
	}
	return nil, fmt.Errorf("looking for %d free ports on %s: none in 1000 attempts", n, loopback)
}

// FreeAddress returns an address of a loopback port that nothing listens on, and
// that no outgoing connection can take meanwhile.
func FreeAddress() (string, error) {
	ports, err := freePorts(1)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(loopback, strconv.Itoa(ports[0])), nil
}
