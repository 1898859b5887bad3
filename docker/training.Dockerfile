# Training, evaluation and export, on GPUs or a CPU.
#
#   docker build -f docker/training.Dockerfile -t segvlm-training .
#   docker run --init --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD/runs:/app/runs" \
#     segvlm-training train --config training/configs/segvlm_lite.yaml data.store=runs/photos.lmdb
#
# Several GPUs: --entrypoint torchrun, then --nproc_per_node 8 -m training train ...

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build

WORKDIR /build
COPY pyproject.toml constraints.txt docker/list_requirements.py ./
RUN python list_requirements.py train > requirements.txt \
    && python -m venv --without-pip /opt/segvlm \
    && python -m pip --python /opt/segvlm/bin/python install --no-cache-dir --no-compile \
        -c constraints.txt -r requirements.txt

COPY LICENSE NOTICE /app/
COPY model /app/model
COPY training /app/training
# A checkout may be closed to others than its owner. Bytecode is made here, because the user of a
# container cannot write it; it is not compared with the time of its source, which copying may
# change. torch has tests for a newer Python among its files.
RUN chmod -R u=rwX,go=rX /app \
    && python -m compileall -q --invalidation-mode unchecked-hash -x torch/testing/_internal \
        /app /opt/segvlm/lib

FROM ${BASE}

# `optim.compile` builds its launchers with C. Debian keeps one version of gcc in a release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 segvlm \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp \
        --shell /usr/sbin/nologin segvlm \
    && install -d -o 10001 -g 10001 /app/runs
COPY --from=build /opt/segvlm /opt/segvlm
COPY --from=build /app /app

# HOME is for whichever user the run is given, who may have none. ONNX Runtime, which checks an
# export, reports its use to its maker unless told not to.
ENV PATH=/opt/segvlm/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="segvlm-training" \
      org.opencontainers.image.description="Trains, evaluates and exports SegVLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
