# Runs on GPUs: jobs of the pool `gpu-k8s`, workers of the pool `gpu`, and `vlm-r3 serve`. The CUDA libraries come
# with torch's wheels; the node brings the driver (NVIDIA's container toolkit).
#   docker build -f infra/docker/gpu.Dockerfile -t vlm-r3:gpu .
ARG PYTHON=python:3.11.13-slim-bookworm

FROM ${PYTHON} AS build
# DeepSpeed and Triton compile at first use, so the compiler is in the last stage too.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements/gpu.lock requirements/gpu.lock
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir "$(grep '^uv==' requirements/gpu.lock)" \
    && /opt/venv/bin/uv pip sync --no-cache --python /opt/venv/bin/python requirements/gpu.lock
COPY pyproject.toml README.md prefect.yaml ./
COPY flows flows
COPY tasks tasks
COPY models models
COPY infra infra
RUN /opt/venv/bin/uv pip install --no-cache --no-deps --no-build-isolation --python /opt/venv/bin/python -e . \
    && /opt/venv/bin/python -m compileall -q /app

FROM ${PYTHON}
LABEL org.opencontainers.image.title="vlm-r3" org.opencontainers.image.description="VLM-R3 on NVIDIA GPUs"
RUN apt-get update && apt-get install -y --no-install-recommends g++ tini && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 vlm && useradd --uid 10001 --gid vlm --create-home vlm \
    && install -d -o vlm -g vlm /work
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VLM_R3_HOME=/app \
    VLM_R3_WORK_DIR=/work \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
VOLUME /work
# Prefect's worker answers on 8080 when it is started with --with-healthcheck.
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["tini", "--"]
CMD ["prefect", "worker", "start", "--pool", "gpu", "--limit", "1", "--with-healthcheck"]
