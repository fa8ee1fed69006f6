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

	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/manager"
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
	root.AddCommand(newManager(), newRender())
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

func runManager(ctx context.Context) error {
	s, err := settings.Load()
	if err != nil {
		return err
	}
	logger, err := logging.New(os.Stderr, s.EffectiveLogLevel(), s.LogsJSON())
	if err != nil {
		return err
	}
	if err := logging.Install(logger, s.EffectiveLogLevel()); err != nil {
		return err
	}
	config, err := clusterConfig(s.Kubeconfig)
	if err != nil {
		return err
	}
	return manager.Run(klog.NewContext(ctx, logger), config, s)
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
