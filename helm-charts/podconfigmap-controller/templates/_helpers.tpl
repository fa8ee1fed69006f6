{{- define "podconfigmap-controller.fullname" -}}
{{- default "podconfigmap-controller" .Values.fullnameOverride -}}
{{- end }}

{{- /* Labels of all objects, besides their app.kubernetes.io/name. */}}
{{- define "podconfigmap-controller.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- /* What the network policy knows the test's pod by. */}}
{{- define "podconfigmap-controller.testLabels" -}}
app.kubernetes.io/name: podconfigmap-controller
app.kubernetes.io/component: test
{{- end }}

{{- define "podconfigmap-controller.serviceAccountName" -}}
{{- $own := printf "%s-controller-manager" (include "podconfigmap-controller.fullname" .) }}
{{- if .Values.serviceAccount.create }}
{{- default $own .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "podconfigmap-controller.image" -}}
{{- $tag := default (printf "v%s" .Chart.AppVersion) .Values.image.tag }}
{{- include "podconfigmap-controller.reference" (list .Values.image.repository $tag .Values.image.digest) }}
{{- end }}

{{- /* The agents' image where it is another one, else nothing. */}}
{{- define "podconfigmap-controller.agentImage" -}}
{{- $own := .Values.ebpf.agent.image }}
{{- if or $own.repository $own.tag $own.digest }}
{{- $repository := default .Values.image.repository $own.repository }}
{{- $tag := default (default (printf "v%s" .Chart.AppVersion) .Values.image.tag) $own.tag }}
{{- include "podconfigmap-controller.reference" (list $repository $tag $own.digest) }}
{{- end }}
{{- end }}

{{- /* A list of repository, tag, digest as an image reference. */}}
{{- define "podconfigmap-controller.reference" -}}
{{- if index . 2 }}
{{- printf "%s@%s" (index . 0) (index . 2) }}
{{- else }}
{{- printf "%s:%s" (index . 0) (index . 1) }}
{{- end }}
{{- end }}

{{- define "podconfigmap-controller.ownPriorityClass" -}}
{{- if .Values.priorityClass.create }}
{{- include "podconfigmap-controller.fullname" . }}-priority
{{- end }}
{{- end }}

{{- define "podconfigmap-controller.priorityClassName" -}}
{{- default (include "podconfigmap-controller.ownPriorityClass" .) .Values.priorityClassName }}
{{- end }}

{{- define "podconfigmap-controller.agentPriorityClass" -}}
{{- default (include "podconfigmap-controller.ownPriorityClass" .) .Values.ebpf.agent.priorityClassName }}
{{- end }}

{{- /* KEY=VALUE,KEY=VALUE, in the order of the keys. */}}
{{- define "podconfigmap-controller.agentNodeSelector" -}}
{{- $pairs := list }}
{{- range $key, $value := .Values.ebpf.agent.nodeSelector }}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) }}
{{- end }}
{{- join "," $pairs }}
{{- end }}

{{- /* Two values of one variable would be one too many for the cluster. */}}
{{- define "podconfigmap-controller.checkExtraEnv" -}}
{{- $settings := include "podconfigmap-controller.settings" . | fromYaml }}
{{- $seen := dict }}
{{- range .Values.extraEnv }}
{{- if hasKey $settings .name }}
{{- fail (printf "extraEnv sets %s: %s" .name (get $settings .name)) }}
{{- end }}
{{- if hasKey $seen .name }}
{{- fail (printf "extraEnv sets %s twice" .name) }}
{{- end }}
{{- $_ := set $seen .name true }}
{{- end }}
{{- end }}
