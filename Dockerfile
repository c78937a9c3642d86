# One node in a container. Two ways to the same image:
#
#   docker build -t kvstore .                        compiles inside; needs a registry and crates.io
#   docker build -t kvstore --target from-host .     takes target/release/kvstore, built here before
#
# What the image needs comes first and who fills it follows, so that a builder which makes all stages up to the one
# asked for does not compile when it is given a binary.

FROM debian:bookworm-slim AS runtime
# A number of its own, so that a mounted directory can be given to it: chown 10001:10001
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin kvstore \
    && install -d -m 0750 -o kvstore -g kvstore /data
ENV BIND_ADDR=0.0.0.0 NET_PORT=8081 KVSTORE_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8081
# Ready means recovered, voting and with a clock in bounds; peers that are away do not count.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["kvstore", "health"]
ENTRYPOINT ["kvstore"]

FROM runtime AS from-host
ARG BINARY=target/release/kvstore
COPY ${BINARY} /usr/local/bin/kvstore

FROM rust:1-bookworm AS builder
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# Cargo.toml names what lies there, although it is not built.
COPY benches benches
RUN cargo build --release --locked --bin kvstore && strip --strip-debug target/release/kvstore

FROM runtime
COPY --from=builder /src/target/release/kvstore /usr/local/bin/kvstore
