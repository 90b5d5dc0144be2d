# Trains on CUDA: docker build -f docker/train.Dockerfile -t pyrskip-train .
# torch's wheels bring the CUDA libraries along, so the base is plain Python; the driver is the host's (NVIDIA's container toolkit).
FROM python:3.11-slim-bookworm AS dependencies
ARG EXTRAS=train,export,easy-vqa,scenes,convert,minilm,hf,remote,wandb,tensorboard,mlflow,sweep,cluster
WORKDIR /build
COPY pyproject.toml constraints.txt docker/requirements.py ./
# 5 GB that change with the pins alone
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/pyrskip \
    && python requirements.py pyproject.toml "$EXTRAS" > requirements.txt \
    && /opt/pyrskip/bin/pip install --constraint constraints.txt --requirement requirements.txt

FROM dependencies AS package
COPY . /source
RUN /opt/pyrskip/bin/pip install --no-cache-dir --no-deps --prefix /package /source

FROM python:3.11-slim-bookworm
COPY --from=dependencies /opt/pyrskip /opt/pyrskip
# over the environment of dependencies: pyrskip alone, so that pulling a new version pulls a few MB
COPY --from=package /package /opt/pyrskip
RUN useradd --create-home --uid 1000 pyrskip && install --directory --owner=pyrskip /workspace
ENV PATH=/opt/pyrskip/bin:$PATH PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /workspace
# containers lose their GPUs when the host reloads its units; a training then fails at its next start
HEALTHCHECK --interval=5m --timeout=60s --start-period=2m \
    CMD ["python", "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
ENTRYPOINT ["pyrskip"]
CMD ["--help"]
