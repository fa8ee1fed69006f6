# syntax=docker/dockerfile:1
ARG GO=golang:1.26
ARG BASE=gcr.io/distroless/static:nonroot

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
COPY internal ./internal
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X github.com/podconfigmap/podconfigmap-controller/internal/version.Version=${VERSION} -X github.com/podconfigmap/podconfigmap-controller/internal/version.Commit=${COMMIT}" \
    -o /podconfigmap-controller .

FROM ${BASE}
COPY --from=build /podconfigmap-controller /podconfigmap-controller
USER 65532:65532
ENTRYPOINT ["/podconfigmap-controller"]
CMD ["manager"]
