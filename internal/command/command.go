// SPDX-License-Identifier: Apache-2.0

// Package command is the command line of the binary.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/internal/agent"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/manager"
	"github.com/podconfigmap/podconfigmap-controller/internal/quietstop"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/internal/version"
)

// New returns the root command; its subcommands are the binary's modes.
func New() *cobra.Command {
	root := &cobra.Command{
		Use:           "podconfigmap-controller",
		Short:         "Keeps a ConfigMap with the metadata of every pod that a PodConfigMapConfig selects",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newManager(), newAgent(), newRender(), newCheck())
	return root
}

func newManager() *cobra.Command {
	return &cobra.Command{
		Use:   "manager",
		Short: "Run the operator; its settings are environment variables (docs/settings.md)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runManager(ctx)
		},
	}
}

func newAgent() *cobra.Command {
	cleanup := false
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the node agent; its settings are environment variables (docs/settings.md)",
		Long: `Run the node agent: bring the eBPF programs that PodConfigMapConfigs ask for to
the pods of the node NODE_NAME. The programs stay in the kernel when the agent
ends, unless its DaemonSet is being deleted or gone. Its settings are environment
variables (docs/settings.md); NODE_NAME and POD_NAMESPACE have to be set.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runAgent(ctx, cleanup)
		},
	}
	cmd.Flags().BoolVar(&cleanup, "cleanup", false, "take away everything that agents left on the node, report it, and wait to be stopped")
	return cmd
}

func runManager(ctx context.Context) error {
	return start(ctx, settings.Load, manager.Run)
}

func runAgent(ctx context.Context, cleanup bool) error {
	if cleanup {
		return start(ctx, settings.LoadAgent, agent.Cleanup)
	}
	return start(ctx, settings.LoadAgent, agent.Run)
}

// start sets up what every mode needs.
func start(ctx context.Context, load func() (*settings.Settings, error), mode func(context.Context, *rest.Config, *settings.Settings) error) error {
	s, err := load()
	if err != nil {
		return err
	}
	logger, err := logging.New(os.Stderr, s.EffectiveLogLevel(), s.LogsJSON())
	if err != nil {
		return err
	}
	ctx = klog.NewContext(ctx, logger)
	logger = quietstop.Logger(ctx)
	if err := logging.Install(logger, s.EffectiveLogLevel()); err != nil {
		return err
	}
	config, err := clusterConfig(s.Kubeconfig)
	if err != nil {
		return err
	}
	return mode(klog.NewContext(ctx, logger), config, s)
}

// clusterConfig reads the kubeconfig files, or without any the ServiceAccount of
// the pod that this runs in.
func clusterConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no cluster to work on: set KUBECONFIG, or run in a pod")
		}
		return config, err
	}
	rules := &clientcmd.ClientConfigLoadingRules{Precedence: filepath.SplitList(kubeconfig)}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading KUBECONFIG=%q: %w", kubeconfig, err)
	}
	return config, nil
}
