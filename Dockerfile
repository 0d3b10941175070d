# Two stages: the service is built with the whole toolchain and runs with nothing but itself and the C library.

# For a release: both images by digest, so that no tag moves under the build (`docker buildx imagetools inspect rust:1-bookworm`
# says it), and where the sources are:
#   docker build --build-arg RUST_IMAGE=rust:1-bookworm@sha256:... --build-arg RUNTIME_IMAGE=...:nonroot@sha256:... \
#     --build-arg SOURCE=https://... --build-arg REVISION="$(git rev-parse HEAD)" .
ARG RUST_IMAGE=rust:1-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# .sqlx/ stands in for a database; symbols are of no use in the image.
ENV SQLX_OFFLINE=true CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never

# Writes the list of all crates into the binary, where scanners of images look for it.
RUN cargo install cargo-auditable --version 0.7.7 --locked

# The dependencies in a layer of their own, around an empty service: built again only when Cargo.lock changes.
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo auditable build --release --locked --bin auth

COPY sqlx.toml ./
COPY .sqlx .sqlx
COPY migrations migrations
COPY src src
# cargo goes by time stamps, and those of the checkout may be older than the empty service's.
RUN touch build.rs src/main.rs src/lib.rs && cargo auditable build --release --locked --bin auth

FROM ${RUNTIME_IMAGE}
# scripts/check compares the version with Cargo.toml.
ARG VERSION=1.0.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="auth" \
      org.opencontainers.image.description="Sign-in service of a storefront" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="NOASSERTION"
COPY --from=build /build/target/release/auth /auth
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/auth", "health"]
ENTRYPOINT ["/auth"]
CMD ["serve"]
