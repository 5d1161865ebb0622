{{/* Name of everything of a release. */}}
{{- define "genrec.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The Services that the pods are endpoints of: the release's own, or the stable release's. */}}
{{- define "genrec.endpoint" -}}
{{- .Values.canary.of | default (include "genrec.fullname" .) -}}
{{- end -}}

{{- define "genrec.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "genrec.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "genrec.image" -}}
{{- $repository := required "image.repository is required: the serving image, see k8s/images" .Values.image.repository -}}
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

{{/* Threads of each engine. ONNX Runtime counts the node's cores, not the container's. */}}
{{- define "genrec.threads" -}}
{{- if .Values.server.threads -}}
{{- .Values.server.threads -}}
{{- else -}}
{{- $cpu := toString (dig "limits" "cpu" (dig "requests" "cpu" "1" .Values.resources) .Values.resources) -}}
{{- if hasSuffix "m" $cpu -}}
{{- $cpu = divf (trimSuffix "m" $cpu | float64) 1000 -}}
{{- end -}}
{{- max 1 (floor (divf (ceil (float64 $cpu)) .Values.server.instances)) -}}
{{- end -}}
{{- end -}}

{{- define "genrec.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "genrec.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* PromQL: this release's pods. */}}
{{- define "genrec.pods" -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "genrec.fullname" . }}-[a-z0-9]+-[a-z0-9]+"
{{- end -}}
