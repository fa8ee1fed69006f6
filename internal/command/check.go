// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// askAgain is the pause between two questions, askLimit how long one may take.
const (
	askAgain = 500 * time.Millisecond
	askLimit = 5 * time.Second
)

func newCheck() *cobra.Command {
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "check URL...",
		Short: "Ask URLs until all have answered with status 200, as the chart's test does",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, urls []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			for _, url := range urls {
				if err := askUntilItAnswers(ctx, url); err != nil {
					return fmt.Errorf("asking %s for up to %s: %w", url, patience, err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s answers\n", url)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&patience, "patience", time.Minute, "how long to go on asking")
	return cmd
}

// askUntilItAnswers returns the last answer, as an error, when the context ends.
func askUntilItAnswers(ctx context.Context, url string) error {
	last := errors.New("there was no time to ask")
	for ctx.Err() == nil {
		err := ask(ctx, url)
		if err == nil {
			return nil
		}
		// What the context's end does to a question under way says nothing of the URL.
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
		case <-time.After(askAgain):
		}
	}
	return last
}

func ask(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
		return fmt.Errorf("it answers %s: %s", response.Status, body)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
