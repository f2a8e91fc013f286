# syntax=docker/dockerfile:1
# The tool (the last stage, and tool-gpu) and its server alone (serve, serve-gpu), without torch; docs/packaging.md has
# more on each.
#   docker build -t fimaq-tool . && docker run --rm -v "$PWD:/data" fimaq-tool evaluate model.onnx --data val
#   docker build -t fimaq-tool-serve --target serve .
#   docker run --rm --read-only -p 127.0.0.1:8080:8080 -v "$PWD/models:/models:ro" fimaq-tool-serve

ARG BASE=python:3.11.14-slim-bookworm


FROM ${BASE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY toolchain toolchain
COPY cli cli
COPY deploy deploy
RUN python3 -m venv /opt/pip && /opt/pip/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .


FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/fimaq
WORKDIR /build
COPY requirements.lock requirements-serve.lock ./


# The wheel's own requirements include torch and the GPU build of ONNX Runtime: they are left out by --no-deps.
FROM build AS build-serve
RUN /opt/fimaq/bin/pip install --requirement requirements-serve.lock
COPY --from=wheel /wheels /wheels
RUN /opt/fimaq/bin/pip install --no-deps /wheels/*.whl && /opt/fimaq/bin/pip uninstall --yes pip setuptools


FROM build AS build-serve-gpu
RUN sed '/^onnxruntime==/d' requirements-serve.lock > requirements-serve-gpu.lock \
    && sed -n 's/^onnxruntime-gpu==/onnxruntime-gpu[cuda,cudnn]==/p' requirements.lock >> requirements-serve-gpu.lock \
    && /opt/fimaq/bin/pip install --requirement requirements-serve-gpu.lock
COPY --from=wheel /wheels /wheels
RUN /opt/fimaq/bin/pip install --no-deps /wheels/*.whl && /opt/fimaq/bin/pip uninstall --yes pip setuptools


# PyTorch's default Linux wheels bring several gigabytes of CUDA libraries; those of this index bring none.
FROM build AS build-tool
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" \
    /opt/fimaq/bin/pip install --constraint requirements.lock torch torchvision
COPY --from=wheel /wheels /wheels
RUN /opt/fimaq/bin/pip install --constraint requirements.lock /wheels/*.whl


FROM build AS build-tool-gpu
RUN /opt/fimaq/bin/pip install --constraint requirements.lock torch torchvision
COPY --from=wheel /wheels /wheels
RUN /opt/fimaq/bin/pip install --constraint requirements.lock /wheels/*.whl


FROM ${BASE} AS run
LABEL org.opencontainers.image.title="fimaq-tool" \
      org.opencontainers.image.description="A vision transformer from PyTorch to a low-bit ONNX file, and behind a port" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV HOME=/home/fimaq \
    ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/fimaq/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Python's images ship no bytecode, and a root that cannot be written to never gets any.
RUN python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && install --directory --owner=10001 --group=10001 /home/fimaq /data
# A number, so that a cluster can tell it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["fimaq-tool"]


FROM run AS run-serve
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=2)"]
# Inside a container nothing but other containers and published ports reaches it.
CMD ["serve", "/models", "--host", "0.0.0.0", "--port", "8080"]


FROM run-serve AS serve
COPY --from=build-serve /opt/fimaq /opt/fimaq


FROM run-serve AS serve-gpu
COPY --from=build-serve-gpu /opt/fimaq /opt/fimaq
CMD ["serve", "/models", "--host", "0.0.0.0", "--port", "8080", "--provider", "cuda"]


# The home folder holds caches of downloaded weights.
FROM run AS run-tool
WORKDIR /data
CMD ["--help"]


FROM run-tool AS tool-gpu
COPY --from=build-tool-gpu /opt/fimaq /opt/fimaq


FROM run-tool AS tool
COPY --from=build-tool /opt/fimaq /opt/fimaq
