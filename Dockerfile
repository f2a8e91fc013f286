# syntax=docker/dockerfile:1
# The tool on a CPU: docker run --rm -v "$PWD:/data" fimaq-tool evaluate model.onnx --data val

FROM python:3.11.14-slim-bookworm AS build

# PyTorch's default Linux wheels bring several gigabytes of CUDA libraries. The index of its CPU wheels, which its
# installation page names, makes a far smaller image: docker build --build-arg TORCH_INDEX=ADDRESS .
ARG TORCH_INDEX=""

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

WORKDIR /src
RUN python -m venv /opt/fimaq
COPY requirements.lock ./
# A layer of its own, so that a change to the sources does not fetch torch again.
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" /opt/fimaq/bin/pip install --constraint requirements.lock torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY toolchain toolchain
COPY cli cli
COPY deploy deploy
RUN /opt/fimaq/bin/pip install --constraint requirements.lock .


FROM python:3.11.14-slim-bookworm

LABEL org.opencontainers.image.title="fimaq-tool" \
      org.opencontainers.image.description="A vision transformer from PyTorch to a low-bit ONNX file" \
      org.opencontainers.image.licenses="Apache-2.0"

ENV HOME=/home/fimaq \
    ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/fimaq/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# A number, so that a cluster can tell it is not root; the home folder holds caches of downloaded weights.
RUN install --directory --owner=10001 --group=10001 /home/fimaq /data
COPY --from=build /opt/fimaq /opt/fimaq

WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["fimaq-tool"]
CMD ["--help"]
