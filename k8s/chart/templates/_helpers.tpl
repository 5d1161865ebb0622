{{- define "genrec.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{/* Name of everything of a release. */}}
{{- define "genrec.fullname" -}}
{{- $name := include "genrec.name" . -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "%q cannot be the name of a Service, which has a letter, then letters, digits and hyphens: set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* The Services that the pods are endpoints of: the release's own, or the stable release's. */}}
{{- define "genrec.endpoint" -}}
{{- .Values.canary.of | default (include "genrec.fullname" .) -}}
{{- end -}}

{{- define "genrec.selectorLabels" -}}
app.kubernetes.io/name: {{ include "genrec.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "genrec.labels" -}}
{{- include "genrec.labelsWith" (list .) -}}
{{- end -}}

{{/* list . MORE ...: the labels of everything, under more of them; the first that has a label wins. */}}
{{- define "genrec.labelsWith" -}}
{{- $root := first . -}}
{{- $labels := dict -}}
{{- range rest . -}}
{{- $labels = merge $labels (. | default dict) -}}
{{- end -}}
{{- range $value := list "commonLabels" "podLabels" -}}
{{- range $selected := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "genrec/endpoint" -}}
{{- if hasKey (get $root.Values $value | default dict) $selected -}}
{{- fail (printf "%s: %s is what pods are selected by: leave it out, or see nameOverride" $value $selected) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $own := dict "app.kubernetes.io/name" (include "genrec.name" $root) "app.kubernetes.io/instance" $root.Release.Name -}}
{{- $_ := set $own "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version) -}}
{{- toYaml (merge $labels ($root.Values.commonLabels | default dict) $own) -}}
{{- end -}}

{{- define "genrec.image" -}}
{{- $repository := required "image.repository is required: the serving image, see k8s/images" .Values.image.repository -}}
{{- if contains "@" $repository -}}
{{- fail (printf "image.repository is %s: give the digest as image.digest" $repository) -}}
{{- else if contains ":" (base $repository) -}}
{{- fail (printf "image.repository is %s: give the tag as image.tag" $repository) -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "genrec.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "genrec.fullname" .) -}}
{{- end -}}

{{- define "genrec.bundleScheme" -}}
{{- $location := required "bundle.location is required: pvc://CLAIM/PATH, s3://BUCKET/PATH, gs://, az:// or oci://" .Values.bundle.location -}}
{{- regexFind "^[a-z0-9]+" $location -}}
{{- end -}}

{{/* What stands behind the scheme. */}}
{{- define "genrec.bundlePath" -}}
{{- regexReplaceAll "^[a-z0-9]+://" .Values.bundle.location "" | trimSuffix "/" -}}
{{- end -}}

{{/* Empty without a live catalogue. */}}
{{- define "genrec.catalogScheme" -}}
{{- regexFind "^[a-z0-9]+" (.Values.catalog.location | default "") -}}
{{- end -}}

{{/* Threads of each engine. Without it, ONNX Runtime and OpenVINO count the node's cores. */}}
{{- define "genrec.threads" -}}
{{- if .Values.server.threads -}}
{{- .Values.server.threads -}}
{{- else -}}
{{- max 1 (floor (divf (include "genrec.cores" . | float64) .Values.server.instances)) -}}
{{- end -}}
{{- end -}}

{{/* Processors of the server's container: the limit, else the request, rounded up. */}}
{{- define "genrec.cores" -}}
{{- $resources := .Values.resources | default dict -}}
{{- $cpu := coalesce (get ($resources.limits | default dict) "cpu") (get ($resources.requests | default dict) "cpu") "1" | toString -}}
{{- if hasSuffix "m" $cpu -}}
{{- $cpu = divf (trimSuffix "m" $cpu | float64) 1000 -}}
{{- end -}}
{{- ceil (float64 $cpu) -}}
{{- end -}}

{{/* Seconds until the server has to be ready; engine auto measures first. */}}
{{- define "genrec.startupSeconds" -}}
{{- add .Values.probes.startupSeconds (eq .Values.server.engine "auto" | ternary 300 0) -}}
{{- end -}}

{{/* The port of the traces' collector; empty without one. */}}
{{- define "genrec.tracesPort" -}}
{{- with .Values.traces.collector -}}
{{- $port := regexFind ":[0-9]+(/|$)" . | trimPrefix ":" | trimSuffix "/" -}}
{{- $port | default (hasPrefix "https" . | ternary "443" "80") -}}
{{- end -}}
{{- end -}}

{{/* Failed liveness probes after which a container is ended: 6, and what a start inside the container may take. */}}
{{- define "genrec.livenessFailures" -}}
{{- $start := eq (int .Values.server.restarts) 0 | ternary 0 (include "genrec.startupSeconds" . | int) -}}
{{- add 6 (divf $start .Values.probes.periodSeconds | ceil | int) -}}
{{- end -}}

{{/* list NAME VARIABLES: a list of environment variables; NAME is the value that holds them. */}}
{{- define "genrec.env" -}}
{{- $path := first . -}}
{{- range last . -}}
{{- if and (hasKey . "value") (not (kindIs "string" .value)) -}}
{{- fail (printf "%s: %s is %v, which is no string: put it in quotes, or use --set-string" $path .name .value) -}}
{{- end -}}
{{- end -}}
{{- toYaml (last .) -}}
{{- end -}}

{{/* What every pod of the release has. */}}
{{- define "genrec.podBase" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
  {{- end }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the pods have that work for long: the server's and the knowledge Job's. */}}
{{- define "genrec.workerBase" -}}
serviceAccountName: {{ include "genrec.serviceAccount" . }}
{{ include "genrec.podBase" . }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* PromQL: this release's pods. */}}
{{- define "genrec.pods" -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "genrec.fullname" . }}-[a-z0-9]+-[a-z0-9]+"
{{- end -}}
