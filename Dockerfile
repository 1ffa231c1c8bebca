# pgusher in an image: docker build --network host -t pgusher .
# The configuration belongs to /etc/pgusher/pgusher.toml (mount the folder, not the file: an editor that replaces the
# file would leave the container with the old one). It must listen on more than the container's own loopback:
# listen = ["0.0.0.0:6432"].

FROM rust:1-bookworm AS build
# How many jobs cargo runs; "default" is one for each core.
ARG CARGO_BUILD_JOBS=default
WORKDIR /build
# The dependencies are a layer of their own, built around an empty pgusher: most changes leave them alone.
COPY Cargo.toml Cargo.lock ./
COPY crates/policy/Cargo.toml crates/policy/
COPY crates/relay/Cargo.toml crates/relay/
COPY crates/ring/Cargo.toml crates/ring/
COPY crates/wire/Cargo.toml crates/wire/
RUN for crate in . crates/*; do mkdir $crate/src && touch $crate/src/lib.rs; done && echo 'fn main() {}' >src/main.rs && \
    mkdir crates/relay/benches && touch crates/relay/benches/transactions.rs && \
    cargo build --release --locked
COPY crates crates
COPY src src
# Cargo goes by the time of change: these must be younger than the empty ones.
COPY dist/strip.sh dist/
RUN touch src/lib.rs src/main.rs crates/*/src/lib.rs && cargo build --release --locked && dist/strip.sh target/release/pgusher

FROM debian:bookworm-slim
# The system's authorities, for upstreams with sslmode = "verify-full".
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/pgusher /usr/local/bin/pgusher
RUN useradd --uid 6432 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pgusher
# What pgusher writes (auth_key_file, grants): a volume here keeps it.
RUN install --directory --owner=6432 --group=6432 --mode=0700 /var/lib/pgusher
ENV STATE_DIRECTORY=/var/lib/pgusher
# By number, so that an orchestrator can see that it is not root.
USER 6432:6432
EXPOSE 6432
STOPSIGNAL SIGTERM
# By address, not by file: a broken edit of the file, which a running pgusher refuses, would look like a sick pgusher.
HEALTHCHECK --interval=5s --timeout=4s --retries=3 CMD ["pgusher", "health", "127.0.0.1:6432"]
ENTRYPOINT ["pgusher"]
CMD ["serve", "/etc/pgusher/pgusher.toml"]
