# The service on an NVIDIA GPU: ONNX Runtime with CUDA, and torch, which brings CUDA's libraries. The
# machine needs NVIDIA's driver and container toolkit.
#
#   docker build -f docker/service-gpu.Dockerfile -t segvlm-service-gpu .
#   docker run --init --gpus 1 --read-only --tmpfs /tmp --cap-drop ALL \
#     -v segvlm-cache:/var/cache/segvlm -p 127.0.0.1:8000:8000 segvlm-service-gpu
#
# What is compiled for a GPU, kernels and TensorRT's engines, is kept in /var/cache/segvlm.

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build

WORKDIR /build
COPY pyproject.toml constraints.txt docker/list_requirements.py ./
# The environment gets no pip: nothing is installed into a running container.
RUN python list_requirements.py serve-gpu traces > requirements.txt \
    && python -m venv --without-pip /opt/segvlm \
    && python -m pip --python /opt/segvlm/bin/python install --no-cache-dir --no-compile \
        -c constraints.txt -r requirements.txt

COPY LICENSE NOTICE docker/healthcheck.py /app/
COPY model /app/model
COPY service /app/service
# A checkout may be closed to others than its owner. Bytecode is made here, because a container
# cannot write it; it is not compared with the time of its source, which copying may change. torch
# has tests for a newer Python among its files.
RUN chmod -R u=rwX,go=rX /app \
    && python -m compileall -q --invalidation-mode unchecked-hash -x torch/testing/_internal \
        /app /opt/segvlm/lib

FROM ${BASE}

# Torch's compiler builds its launchers with C. Debian keeps one version of gcc in a release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 segvlm \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/cache/segvlm \
        --shell /usr/sbin/nologin segvlm \
    && mkdir /bundle \
    && install -d -o 10001 -g 10001 /var/cache/segvlm
COPY --from=build /opt/segvlm /opt/segvlm
COPY --from=build /app /app

# ONNX Runtime reports its use to its maker unless told not to.
ENV PATH=/opt/segvlm/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/var/cache/segvlm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/segvlm/inductor \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SEGVLM_LOG_FORMAT=json
WORKDIR /app
USER 10001:10001
VOLUME /var/cache/segvlm
EXPOSE 8000
STOPSIGNAL SIGTERM
# Compiling for the GPU can take minutes before the service is ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["python", "/app/healthcheck.py"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="segvlm-service-gpu" \
      org.opencontainers.image.description="Finds in a photo what a sentence names, on a GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
