# syntax=docker/dockerfile:1
# The same image as `make image` builds without Docker.
ARG GO=golang:1.26

# Cross-compiles on the builder's own platform.
FROM --platform=$BUILDPLATFORM ${GO} AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY main.go ./
COPY api ./api
COPY controllers ./controllers
COPY ebpf ./ebpf
COPY internal ./internal
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X github.com/podconfigmap/podconfigmap-controller/internal/version.Version=${VERSION} -X github.com/podconfigmap/podconfigmap-controller/internal/version.Commit=${COMMIT}" \
    -o /podconfigmap-controller .

# Nothing but the static binary: no shell, no package, no certificates. Only the
# API server is called, and a pod gets the certificate to trust for it.
FROM scratch
ARG VERSION=dev
ARG COMMIT=
ARG CREATED=
LABEL org.opencontainers.image.title="PodConfigMapController" \
    org.opencontainers.image.description="Keeps a ConfigMap with the metadata of every pod that a PodConfigMapConfig selects" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${COMMIT}" \
    org.opencontainers.image.created="${CREATED}" \
    org.opencontainers.image.source="https://github.com/podconfigmap/podconfigmap-controller" \
    org.opencontainers.image.url="https://github.com/podconfigmap/podconfigmap-controller" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /podconfigmap-controller /podconfigmap-controller
USER 65532:65532
ENTRYPOINT ["/podconfigmap-controller"]
CMD ["manager"]
