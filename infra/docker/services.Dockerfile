# Prefect's server and MLflow's, with the drivers of PostgreSQL and S3 and nothing heavy.
#   docker build -f infra/docker/services.Dockerfile -t vlm-r3:services .
ARG PYTHON=python:3.11.13-slim-bookworm

FROM ${PYTHON} AS build
COPY requirements/services.lock requirements/services.lock
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/services.lock

FROM ${PYTHON}
LABEL org.opencontainers.image.title="vlm-r3-services"
RUN groupadd --gid 10001 vlm && useradd --uid 10001 --gid vlm --create-home vlm \
    && install -d -o vlm -g vlm /home/vlm/.prefect
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /home/vlm
USER 10001:10001
# The server that a container runs says its own port.
ENV HEALTH_URL=http://127.0.0.1:4200/api/health
HEALTHCHECK --interval=15s --timeout=5s --start-period=90s --retries=5 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(os.environ['HEALTH_URL'], timeout=4)"]
CMD ["prefect", "server", "start", "--host", "0.0.0.0"]
