# The service on a CPU, without torch.
#
#   docker build -f docker/service.Dockerfile -t segvlm-service .
#   docker run --init --read-only --cap-drop ALL -p 127.0.0.1:8000:8000 segvlm-service
#
# A model of your own: -v "$PWD/runs/bundle:/bundle:ro" -e SEGVLM_BUNDLE=/bundle

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build

WORKDIR /build
COPY pyproject.toml constraints.txt docker/list_requirements.py ./
# The environment gets no pip: nothing is installed into a running container.
RUN python list_requirements.py serve traces > requirements.txt \
    && python -m venv --without-pip /opt/segvlm \
    && python -m pip --python /opt/segvlm/bin/python install --no-cache-dir --no-compile \
        -c constraints.txt -r requirements.txt

COPY LICENSE NOTICE docker/healthcheck.py /app/
COPY model /app/model
COPY service /app/service
# A checkout may be closed to others than its owner. Bytecode is made here, because a container
# cannot write it; it is not compared with the time of its source, which copying may change.
RUN chmod -R u=rwX,go=rX /app \
    && python -m compileall -q --invalidation-mode unchecked-hash /app /opt/segvlm/lib

FROM ${BASE}

RUN groupadd --gid 10001 segvlm \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin segvlm \
    && mkdir /bundle
COPY --from=build /opt/segvlm /opt/segvlm
COPY --from=build /app /app

# ONNX Runtime reports its use to its maker unless told not to.
ENV PATH=/opt/segvlm/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    ORT_DISABLE_TELEMETRY=1 \
    SEGVLM_LOG_FORMAT=json
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "/app/healthcheck.py"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="segvlm-service" \
      org.opencontainers.image.description="Finds in a photo what a sentence names" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
