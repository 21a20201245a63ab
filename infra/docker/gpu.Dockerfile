# Builds an image for nodes with NVIDIA GPUs; CUDA's libraries come with PyTorch, the driver with the host.
#   docker build -f infra/docker/gpu.Dockerfile -t triptych:gpu .
FROM python:3.11-slim-bookworm

# gcc compiles kernels at run time; wget is what KubeRay's probes call.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ libgomp1 libnuma1 tini wget \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home triptych && mkdir -p /opt/triptych /shared && chown triptych /opt/triptych /shared
USER 1000
WORKDIR /opt/triptych
COPY --chown=1000 . .
RUN PYTHON=python3.11 infra/install infra/requirements/gpu.txt && rm -rf ~/.cache
ENV PATH=/opt/triptych/.venv/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /shared
ENTRYPOINT ["tini", "--"]
CMD ["triptych", "--help"]
