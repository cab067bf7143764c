# syntax=docker/dockerfile:1
# docker build -t claviger . — from the lock file, into a small image that runs as nobody in particular.
# To build the same image again later, name the two base images by their digests: --build-arg BUILDER=rust@sha256:… and so on.
ARG BUILDER=rust:1.95-slim-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
WORKDIR /src
# C for SQLite and the ciphers: the compiler is in the image.
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
COPY bench/bare.rs bench/bare.rs
COPY migrations migrations
COPY playground/dist playground/dist
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin claviger && \
    cp target/release/claviger /claviger

FROM ${BASE}
# The system's certificates, by which upstreams, mail servers and databases are verified.
RUN apt-get update && \
    apt-get install --yes --no-install-recommends ca-certificates && \
    rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 10001 claviger && \
    useradd --system --uid 10001 --gid claviger --home-dir /var/lib/claviger --shell /usr/sbin/nologin claviger && \
    install --directory --owner=claviger --group=claviger --mode=0700 /var/lib/claviger
COPY --from=build /claviger /usr/local/bin/claviger
ENV DATA_DIR=/var/lib/claviger \
    HOST=0.0.0.0 \
    PORT=3001 \
    LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/claviger
VOLUME /var/lib/claviger
EXPOSE 3001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["claviger", "healthcheck"]
ENTRYPOINT ["claviger"]
CMD ["serve"]
