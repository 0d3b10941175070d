# Two stages: the service is built with the whole toolchain and runs with nothing but itself and the C library.

# To let no tag move under a build, give both by digest (`docker buildx imagetools inspect rust:1-bookworm` says it):
#   docker build --build-arg RUST_IMAGE=rust:1-bookworm@sha256:... --build-arg RUNTIME_IMAGE=...:nonroot@sha256:... .
ARG RUST_IMAGE=rust:1-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# .sqlx/ stands in for a database; symbols are of no use in the image.
ENV SQLX_OFFLINE=true CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never

# The dependencies in a layer of their own, around an empty service: built again only when Cargo.lock changes.
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo build --release --locked --bin auth

COPY sqlx.toml ./
COPY .sqlx .sqlx
COPY migrations migrations
COPY src src
# cargo goes by time stamps, and those of the checkout may be older than the empty service's.
RUN touch build.rs src/main.rs src/lib.rs && cargo build --release --locked --bin auth

FROM ${RUNTIME_IMAGE}
COPY --from=build /build/target/release/auth /auth
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/auth", "health"]
ENTRYPOINT ["/auth"]
CMD ["serve"]
