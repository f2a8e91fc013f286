# Written by fimaq-tool $version.
# BASE is the serve stage of the project's Dockerfile, which says how to start, stop and probe the server.
ARG BASE=$image
FROM $${BASE}

LABEL org.opencontainers.image.title="$name" \
      org.opencontainers.image.description="$name behind the Open Inference Protocol" \
      fimaq.model.sha256="$sha256"

COPY --chmod=0755 models /models
