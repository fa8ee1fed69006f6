// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

func newRender() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "render -f FILE [-f FILE]...",
		Short: "Print the ConfigMaps of pods and configs from files, without a cluster",
		Example: `  kubectl get pods,pcmc -o yaml | podconfigmap-controller render -f -
  podconfigmap-controller render -f pod.yaml -f config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in := &input{}
			for _, file := range files {
				if err := in.readFile(file, cmd.InOrStdin()); err != nil {
					return err
				}
			}
			return in.render(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file with pods and PodConfigMapConfigs (YAML or JSON; - is standard input)")
	if err := cmd.MarkFlagRequired("filename"); err != nil {
		panic(err) // the flag is defined one line above
	}
	return cmd
}

// input is what was read: pods and configs.
type input struct {
	pods    []*observed.Pod
	configs []*configmaps.Config
}

func (in *input) readFile(file string, stdin io.Reader) error {
	if file == "-" {
		return in.read("standard input", stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("reading pods and configs: %w", err)
	}
	defer f.Close()
	return in.read(file, f)
}

func (in *input) read(name string, r io.Reader) error {
	decoder := yaml.NewYAMLOrJSONDecoder(r, 4096)
	for document := 1; ; document++ {
		var raw map[string]any
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = in.add(raw)
		}
		if err != nil {
			return fmt.Errorf("reading document %d of %s: %w", document, name, err)
		}
	}
}

func (in *input) add(raw map[string]any) error {
	kind, _ := raw["kind"].(string)
	switch {
	case len(raw) == 0:
		return nil
	case kind == "List" || kind == "PodList" || kind == "PodConfigMapConfigList":
		items, _ := raw["items"].([]any)
		for i, item := range items {
			object, _ := item.(map[string]any)
			if err := in.add(object); err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
		}
		return nil
	case kind == "Pod":
		pod := &corev1.Pod{}
		if err := convert(raw, pod); err != nil {
			return err
		}
		in.pods = append(in.pods, observed.NewPod(pod))
		return nil
	case kind == "PodConfigMapConfig":
		pcmc := &v1alpha1.PodConfigMapConfig{}
		if err := convert(raw, pcmc); err != nil {
			return err
		}
		in.configs = append(in.configs, configmaps.Compile(pcmc))
		return nil
	default:
		return fmt.Errorf("kind %q is neither a Pod nor a PodConfigMapConfig", kind)
	}
}

// convert decodes strictly, so that a misspelt field is not silently ignored.
func convert(raw map[string]any, into metav1.Object) error {
	text, err := sigsyaml.Marshal(raw)
	if err != nil {
		return err
	}
	if err := sigsyaml.UnmarshalStrict(text, into); err != nil {
		return fmt.Errorf("%v: %w", raw["kind"], err)
	}
	if into.GetNamespace() == "" {
		into.SetNamespace(metav1.NamespaceDefault)
	}
	return nil
}

// render prints one ConfigMap for each pod and config that match, and fails
// where one cannot be made; the others are printed all the same.
func (in *input) render(out io.Writer) error {
	var failures []error
	printed := 0
	for _, pod := range in.pods {
		for _, config := range in.configs {
			if config.Namespace != pod.Namespace.Value() || !config.Matches(pod) {
				continue
			}
			cm, failure := configmaps.New(pod, config)
			if failure != nil {
				failures = append(failures, fmt.Errorf("pod %q, config %q: %s: %w", pod.Name, config.Name, failure.Reason, failure))
				continue
			}
			text, err := sigsyaml.Marshal(cm)
			if err != nil {
				return fmt.Errorf("encoding ConfigMap %q: %w", cm.Name, err)
			}
			if _, err := fmt.Fprintf(out, "---\n%s", text); err != nil {
				return fmt.Errorf("writing ConfigMap %q: %w", cm.Name, err)
			}
			printed++
		}
	}
	if printed == 0 && len(failures) == 0 {
		return fmt.Errorf("no config selects a pod of its own namespace (read %d pods, %d configs)", len(in.pods), len(in.configs))
	}
	return errors.Join(failures...)
}
