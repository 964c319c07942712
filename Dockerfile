# Hearth for CPUs. The image holds the program and the small models that come with it; models and data are volumes.
#
#   docker build -t hearth .
#   docker run --rm -v hearth-data:/data hearth keys create
#   docker run -p 8080:8080 -v hearth-models:/models -v hearth-data:/data hearth
#
# It listens on all addresses and so asks for a key: the one that the first line prints, or those of HEARTH_API_KEY. With
# HEARTH_ALLOW_UNAUTHENTICATED=true it asks for none; a name that it is called by, such as a compose service's, is then to be
# allowed with HEARTH_ALLOWED_HOST.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN cargo build --release --locked --bin hearth

FROM debian:bookworm-slim
# The certificates are for `hearth pull`.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /data hearth \
    && install -d -o hearth -g hearth /models /data
COPY --from=build /source/target/release/hearth /usr/local/bin/hearth
# A volume that is new begins with what is here.
COPY --chown=hearth:hearth models/hearth-chat.gguf models/hearth-embed.gguf /models/
USER hearth
ENV HEARTH_HOST=0.0.0.0 HEARTH_PORT=8080 HEARTH_MODELS_DIR=/models HEARTH_DATA_DIR=/data HF_HOME=/models/.huggingface
VOLUME ["/models", "/data"]
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["hearth", "doctor", "--health", "http://127.0.0.1:8080/health/ready"]
ENTRYPOINT ["hearth"]
CMD ["serve"]
