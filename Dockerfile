# One image for any service: docker build --build-arg SERVICE=validator -t continuum/validator:0.1.0 .
# SERVICE is a package of services/, or `continuum` for the command line (which also provisions).
ARG RUST=1.95
FROM rust:${RUST}-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends cmake g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG SERVICE
# The registry and the build folder are kept between services: the dependencies are compiled once.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --package "${SERVICE}" && cp "target/release/${SERVICE}" /service

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home continuum && mkdir -p /data /bus && chown 10001 /data /bus
COPY --from=build /service /usr/local/bin/service
USER 10001
VOLUME /data
ENV CONTINUUM_LISTEN=0.0.0.0:8080 CONTINUUM_DATA_DIR=/data CONTINUUM_LOG_FORMAT=json
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/service"]
