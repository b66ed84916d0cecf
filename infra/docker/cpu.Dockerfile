# The servers' clients and everything that needs no GPU: workers of the pool `local`, and preset tiny.
#   docker build -f infra/docker/cpu.Dockerfile -t vlm-r3:cpu .
ARG PYTHON=python:3.11.13-slim-bookworm

FROM ${PYTHON} AS build
# DeepSpeed builds one C++ operator at first use, so the compiler is in the last stage too.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements/cpu.lock requirements/cpu.lock
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir "$(grep '^uv==' requirements/cpu.lock)" \
    && /opt/venv/bin/uv pip sync --no-cache --python /opt/venv/bin/python --torch-backend cpu requirements/cpu.lock
COPY pyproject.toml README.md prefect.yaml ./
COPY flows flows
COPY tasks tasks
COPY models models
COPY infra infra
RUN /opt/venv/bin/uv pip install --no-cache --no-deps --no-build-isolation --python /opt/venv/bin/python -e . \
    && /opt/venv/bin/python -m compileall -q /app

FROM ${PYTHON}
LABEL org.opencontainers.image.title="vlm-r3" org.opencontainers.image.description="VLM-R3 on CPU"
RUN apt-get update && apt-get install -y --no-install-recommends g++ tini && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 vlm && useradd --uid 10001 --gid vlm --create-home vlm \
    && install -d -o vlm -g vlm /work
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VLM_R3_HOME=/app \
    VLM_R3_WORK_DIR=/work
WORKDIR /app
USER 10001:10001
VOLUME /work
# Prefect's worker answers on 8080 when it is started with --with-healthcheck.
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["tini", "--"]
CMD ["prefect", "worker", "start", "--pool", "local", "--with-healthcheck"]
