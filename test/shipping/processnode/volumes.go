// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	kubeconfigFile = "kubeconfig"
	accountFolder  = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// prepare makes the pod's volumes. It returns the folder of the containers' roots,
// or none for a pod with host paths, which runs outside of one with a kubeconfig.
func (p *pod) prepare(ctx context.Context, of *corev1.Pod) (roots string, err error) {
	if err := os.MkdirAll(p.volume(""), 0o755); err != nil {
		return "", fmt.Errorf("making the pod's folder: %w", err)
	}
	for _, v := range of.Spec.Volumes {
		if err := p.makeVolume(ctx, of, v, p.volume(v.Name)); err != nil {
			return "", fmt.Errorf("making volume %q: %w", v.Name, err)
		}
	}
	if slices.ContainsFunc(of.Spec.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil }) {
		return "", p.writeKubeconfig(of.Spec.Containers[0])
	}
	return filepath.Join(p.dir, "roots"), nil
}

// volume is where a volume's content is kept. A container gets a copy of it when it
// starts, and what an init container leaves there goes back: mounts would outlive a
// test that is killed. Containers that run at the same time share nothing.
func (p *pod) volume(name string) string { return filepath.Join(p.dir, "volumes", name) }

// furnish brings the image's files and the pod's volumes into a container's root.
func (c *container) furnish() error {
	if err := c.unpack(); err != nil {
		return err
	}
	for _, m := range c.spec.VolumeMounts {
		if err := replace(filepath.Join(c.root, m.MountPath), c.pod.volume(m.Name)); err != nil {
			return fmt.Errorf("mounting %q: %w", m.MountPath, err)
		}
	}
	return nil
}

// unpack makes the root, once.
func (c *container) unpack() error {
	hosts := filepath.Join(c.root, "etc/hosts")
	if _, err := os.Stat(hosts); err == nil {
		return nil
	}
	if c.image.Root != "" {
		if err := os.CopyFS(c.root, os.DirFS(c.image.Root)); err != nil {
			return err
		}
	}
	if c.image.Program != "" {
		if err := copyProgram(c.image.Program, filepath.Join(c.root, c.image.Path)); err != nil {
			return err
		}
	}
	// As kubelet's: programs look up the name localhost.
	if err := os.MkdirAll(filepath.Dir(hosts), 0o755); err != nil {
		return err
	}
	return os.WriteFile(hosts, fmt.Appendf(nil, "127.0.0.1\tlocalhost\n%s\t%s\n", c.pod.ip, c.of.Name), 0o644)
}

// giveBack keeps what a container wrote into the pod's empty directories.
func (c *container) giveBack() error {
	for _, v := range c.of.Spec.Volumes {
		for _, m := range c.spec.VolumeMounts {
			if v.EmptyDir == nil || m.Name != v.Name || m.ReadOnly {
				continue
			}
			if err := replace(c.pod.volume(v.Name), filepath.Join(c.root, m.MountPath)); err != nil {
				return fmt.Errorf("keeping what is in %q: %w", m.MountPath, err)
			}
		}
	}
	return nil
}

// replace makes to a copy of the folder from, for anybody to write to.
func replace(to, from string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return os.Chmod(to, 0o777)
}

// copyProgram links a program, or copies it from another file system.
func copyProgram(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (p *pod) makeVolume(ctx context.Context, of *corev1.Pod, v corev1.Volume, dir string) error {
	if v.HostPath != nil {
		return nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	switch {
	case v.ConfigMap != nil:
		return p.writeConfigMap(ctx, of.Namespace, v.ConfigMap.Name, dir)
	case v.Projected != nil:
		return p.writeProjected(ctx, of, v.Projected.Sources, dir)
	case v.EmptyDir != nil:
		return nil
	}
	return errors.New("a node of processes has no such volumes")
}

func (p *pod) writeConfigMap(ctx context.Context, namespace, name, dir string) error {
	cm := &corev1.ConfigMap{}
	if err := p.node.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, cm); err != nil {
		return err
	}
	files := maps.Clone(cm.BinaryData)
	if files == nil {
		files = map[string][]byte{}
	}
	for key, text := range cm.Data {
		files[key] = []byte(text)
	}
	for key, content := range files {
		if err := os.WriteFile(filepath.Join(dir, key), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeProjected writes what admission gives to every pod: the token of its
// ServiceAccount, bound to the pod, the authority, and the namespace.
func (p *pod) writeProjected(ctx context.Context, of *corev1.Pod, sources []corev1.VolumeProjection, dir string) error {
	for _, s := range sources {
		switch {
		case s.ServiceAccountToken != nil:
			request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
				ExpirationSeconds: s.ServiceAccountToken.ExpirationSeconds,
				BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: of.Name, UID: of.UID},
			}}
			token, err := p.node.tokens.CoreV1().ServiceAccounts(of.Namespace).CreateToken(ctx, of.Spec.ServiceAccountName, request, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("requesting a token of ServiceAccount %q: %w", of.Spec.ServiceAccountName, err)
			}
			if err := os.WriteFile(filepath.Join(dir, s.ServiceAccountToken.Path), []byte(token.Status.Token), 0o644); err != nil {
				return err
			}
		case s.ConfigMap != nil:
			if err := p.writeConfigMap(ctx, of.Namespace, s.ConfigMap.Name, dir); err != nil {
				return err
			}
		case s.DownwardAPI != nil:
			for _, item := range s.DownwardAPI.Items {
				if err := os.WriteFile(filepath.Join(dir, item.Path), []byte(of.Namespace), 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// writeKubeconfig does for a process outside of a chroot what the mounted token
// does in one.
func (p *pod) writeKubeconfig(c corev1.Container) error {
	at := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == accountFolder })
	if at < 0 {
		return errors.New("no token is mounted")
	}
	account := p.volume(c.VolumeMounts[at].Name)
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: p.node.server.String(), CertificateAuthority: filepath.Join(account, "ca.crt")}
	config.AuthInfos["a"] = &clientcmdapi.AuthInfo{TokenFile: filepath.Join(account, "token")}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "a"}
	config.CurrentContext = "x"
	return clientcmd.WriteToFile(*config, filepath.Join(p.dir, kubeconfigFile))
}
