// SPDX-License-Identifier: Apache-2.0

package processnode

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// logFile is where a container's output goes. It outlasts the pod.
func (n *Node) logFile(namespace, pod, container string) string {
	return filepath.Join(n.dir, strings.Join([]string{namespace, pod, container}, "_")+".log")
}

// logHandler is that part of kubelet's API from which the API server takes the log
// of a container.
func (n *Node) logHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		text, err := os.ReadFile(n.logFile(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(text) // a client that is gone needs nothing
	})
	return mux
}

// Logs returns what the containers of a namespace's pods wrote so far, by
// "pod/container", also of pods that are gone.
func (n *Node) Logs(namespace string) map[string]string {
	files, err := filepath.Glob(n.logFile(namespace, "*", "*"))
	if err != nil {
		return nil
	}
	logs := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		name := strings.Split(strings.TrimSuffix(filepath.Base(file), ".log"), "_")
		if err == nil && len(name) == 3 {
			logs[name[1]+"/"+name[2]] = string(text)
		}
	}
	return logs
}
