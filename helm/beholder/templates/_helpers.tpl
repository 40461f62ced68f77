{{- define "beholder.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "beholder.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "beholder.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "beholder.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "beholder.selector" -}}
app.kubernetes.io/name: {{ include "beholder.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* A pod that serves; the test's pod has the selector's labels with another component. */}}
{{- define "beholder.serving" -}}
{{ include "beholder.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "beholder.labels" -}}
{{ include "beholder.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "beholder.metadata" -}}
name: {{ include "beholder.fullname" . | quote }}
namespace: {{ .Release.Namespace | quote }}
labels:
  {{- include "beholder.labels" . | nindent 2 }}
{{- end }}

{{/* A regular expression for the names of the Deployment's pods, NAME-HASH-SUFFIX, and of no other release's. Kubernetes
cuts what goes before the suffix to 58 characters: of long names nothing else is sure. */}}
{{- define "beholder.podNames" -}}
{{- $name := include "beholder.fullname" . }}
{{- if gt (len $name) 46 }}
{{- printf "%s.+" (trunc 58 $name) }}
{{- else }}
{{- printf "%s-[a-z0-9]+-[a-z0-9]+" $name }}
{{- end }}
{{- end }}

{{- define "beholder.image" -}}
{{- with .Values.image }}
{{- .repository }}:{{ default $.Chart.AppVersion .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{- define "beholder.serviceAccount" -}}
{{- default (ternary (include "beholder.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* preStop, then SIGTERM: the drain delay, what was accepted, and the engine's own stop. */}}
{{- define "beholder.grace" -}}
{{- with .Values.drain }}
{{- add .preStopSeconds .delaySeconds .timeoutSeconds .engineStopSeconds }}
{{- end }}
{{- end }}

{{- define "beholder.modelSource" -}}
{{- $sources := list }}
{{- if .Values.model.pvc.claimName }}{{ $sources = append $sources "pvc" }}{{ end }}
{{- if .Values.model.oci.reference }}{{ $sources = append $sources "oci" }}{{ end }}
{{- if .Values.model.download.image }}{{ $sources = append $sources "download" }}{{ end }}
{{- if ne (len $sources) 1 }}
{{- fail "model: set exactly one of pvc.claimName, oci.reference and download.image" }}
{{- end }}
{{- if and .Values.model.oci.reference (not .Values.model.oci.allowOlderKubernetes) (semverCompare "<1.35-0" .Capabilities.KubeVersion.Version) }}
{{- fail "model.oci: image volumes are on by default from Kubernetes 1.35; where the ImageVolume feature is switched on earlier, set model.oci.allowOlderKubernetes" }}
{{- end }}
{{- first $sources }}
{{- end }}

{{- define "beholder.modelVolume" -}}
{{- $source := include "beholder.modelSource" . -}}
name: checkpoint
{{- if eq $source "pvc" }}
persistentVolumeClaim:
  claimName: {{ .Values.model.pvc.claimName | quote }}
  readOnly: true
{{- else if eq $source "oci" }}
image:
  reference: {{ .Values.model.oci.reference | quote }}
  pullPolicy: {{ .Values.model.oci.pullPolicy | quote }}
{{- else if eq $source "download" }}
emptyDir:
  sizeLimit: {{ .Values.model.download.sizeLimit | quote }}
{{- end }}
{{- end }}

{{/* The service's YAML file: the chart's own settings, and above them what the user gives. */}}
{{- define "beholder.config" -}}
{{- $own := dict "drain_delay_s" .Values.drain.delaySeconds "drain_timeout_s" .Values.drain.timeoutSeconds }}
{{- if and .Values.auth.existingSecret .Values.config.api_keys_file }}
{{- fail "config.api_keys_file: auth.existingSecret gives the keys already, set one of the two" }}
{{- end }}
{{- if .Values.auth.existingSecret }}
{{- $_ := set $own "api_keys_file" (printf "/etc/beholder/keys/%s" .Values.auth.key) }}
{{- end }}
{{- if .Values.imageStore.existingClaim }}
{{- $_ := set $own "image_store" "/images" }}
{{- end }}
{{- mergeOverwrite $own (deepCopy .Values.config) | toYaml }}
{{- end }}

{{/* The metadata of KEDA's trigger: the chart's own, and above them what the user gives. Of the chart's query no result
means that Prometheus does not know, not that nobody is asking: the replicas stay as they are. */}}
{{- define "beholder.trigger" -}}
{{- with .Values.autoscaling }}
{{- $own := dict "serverAddress" (required "autoscaling.keda.serverAddress: the address of Prometheus, http://host:port" .keda.serverAddress) }}
{{- $_ := set $own "threshold" (toString .samplesPerReplica) }}
{{- if .keda.query }}
{{- $_ := set $own "query" .keda.query }}
{{- else }}
{{- $_ := set $own "query" (printf "sum(beholder_samples_in_flight{namespace=%q,pod=~%q})" $.Release.Namespace (include "beholder.podNames" $)) }}
{{- $_ := set $own "ignoreNullValues" "false" }}
{{- end }}
{{- mergeOverwrite $own .keda.metadata | toYaml }}
{{- end }}
{{- end }}
