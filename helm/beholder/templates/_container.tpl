{{- define "beholder.container" -}}
- name: beholder
  image: {{ include "beholder.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
  args: [serve, {{ .Values.model.path | quote }}, --config, /etc/beholder/beholder.yaml]
  env:
    - name: BEHOLDER_HOST
      value: {{ .Values.listenAddress | quote }}
    - name: BEHOLDER_PORT
      value: "8000"
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: http
      containerPort: 8000
  # The socket opens before the checkpoint loads: /livez answers while it does, /readyz once the golden samples passed.
  startupProbe:
    httpGet: {path: /livez, port: http}
    periodSeconds: 5
    failureThreshold: {{ div (add .Values.startupSeconds 4) 5 }}
  livenessProbe:
    httpGet: {path: /livez, port: http}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  readinessProbe:
    httpGet: {path: /readyz, port: http}
    periodSeconds: 2
    timeoutSeconds: 5
    failureThreshold: 2
  {{- if .Values.drain.preStopSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.drain.preStopSeconds }}
  {{- end }}
  resources:
    {{- include "beholder.resources" . | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: checkpoint
      mountPath: {{ .Values.model.path | quote }}
      readOnly: true
      {{- if .Values.model.pvc.claimName }}
      {{- with .Values.model.pvc.subPath }}
      subPath: {{ . | quote }}
      {{- end }}
      {{- end }}
    - name: config
      mountPath: /etc/beholder/beholder.yaml
      subPath: beholder.yaml
      readOnly: true
    - name: cache
      mountPath: /cache
    - name: tmp
      mountPath: /tmp
    - name: shm
      mountPath: /dev/shm
    {{- if .Values.auth.existingSecret }}
    # The whole folder, not one file: only so does a rotated Secret arrive in a running pod.
    - name: keys
      mountPath: /etc/beholder/keys
      readOnly: true
    {{- end }}
    {{- if .Values.imageStore.existingClaim }}
    - name: images
      mountPath: /images
      {{- with .Values.imageStore.subPath }}
      subPath: {{ . | quote }}
      {{- end }}
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "beholder.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.gpu.count }}
{{- $limits := default (dict) $resources.limits }}
{{- $_ := set $limits .Values.gpu.resource .Values.gpu.count }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "beholder.download" -}}
{{- with .Values.model.download }}
- name: download
  image: {{ .image | quote }}
  {{- with .command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    requests: {cpu: 500m, memory: 1Gi}
  securityContext:
    {{- toYaml $.Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: checkpoint
      mountPath: {{ $.Values.model.path | quote }}
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}
