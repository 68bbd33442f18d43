# The daemon and gs-ctl, kernel half included:
#
#     docker build -t gophership .
#     docker run --cap-add BPF --cap-add PERFMON --security-opt seccomp=unconfined \
#         -v ./etc:/etc/gophership:ro -v gophership:/var/lib/gophership -p 4317:4317 -p 4318:4318 gophership
#
# Without the capabilities the daemon judges pressure in user space. Docker's own seccomp profile
# refuses io_uring: without `seccomp=unconfined`, a thread for each lane writes to the vault by
# `pwritev2` instead, and through the page cache where the file system knows no O_DIRECT.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo xtask build --release

# Not `scratch`: the daemon links libelf, zlib and the C library dynamically.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libelf1 zlib1g \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/gophership /src/target/release/gs-ctl /usr/bin/
EXPOSE 4317 4318
ENTRYPOINT ["/usr/bin/gophership"]
CMD ["run"]
