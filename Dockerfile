# The daemon in a small image. Build: docker build -t walhook .
FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin walhook && strip --strip-debug target/release/walhook

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/walhook --create-home walhook
COPY --from=build /src/target/release/walhook /usr/local/bin/walhook
USER walhook
WORKDIR /var/lib/walhook
EXPOSE 8377
# SIGTERM ends requests in flight before leaving; give it longer than limits.shutdown_grace.
STOPSIGNAL SIGTERM
ENTRYPOINT ["walhook"]
CMD ["run", "--config", "/etc/walhook/walhook.toml"]
