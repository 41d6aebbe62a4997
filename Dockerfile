# syntax=docker/dockerfile:1
# Two targets: `gpu` on NVIDIA's public TensorRT-LLM image, `cpu` for machines without a GPU.
#
#   docker build --target cpu -t briton:cpu . && docker run --rm -p 8000:8000 -v briton-cache:/cache briton:cpu
#   docker build --target gpu -t briton:gpu . && docker run --rm --gpus all --shm-size 1g --ulimit memlock=-1 \
#       -p 8000:8000 -v briton-cache:/cache -v "$PWD/config.yaml:/config/config.yaml:ro" briton:gpu
#
# Checkpoints and engines are kept in /cache. The gateway listens on 8000. The engine's gRPC asks for no credentials and
# stays inside; cluster clients are let in by `--grpc-host 0.0.0.0` and `-p 50051:50051`.
# Neither target has been built where this is tested, which has no container engine; the GPU target has not run at all.
#
# The bases are tags, so that a rebuild takes their security fixes. For the same image again, pin them by digest:
#   docker build --build-arg CPU_BASE=python:3.12-slim@sha256:... --target cpu .
ARG CPU_BASE=python:3.12-slim
ARG GPU_BASE=nvcr.io/nvidia/tensorrt-llm/release:1.2.1


FROM ${CPU_BASE} AS cpu

ENV PYTHONUNBUFFERED=1 BRITON_CACHE_DIR=/cache
WORKDIR /opt/briton
# tini is PID 1: it passes signals on, and reaps what ranks and killed children leave.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home briton \
    && install -d -o briton -g briton /cache
# The dependencies alone, of a package without content: an edit of the sources does not fetch them again.
COPY pyproject.toml ./
COPY constraints constraints
RUN touch README.md && install -D /dev/null briton/__init__.py \
    && pip install --no-cache-dir -c constraints/locked.txt '.[mpi,s3,gcs,azure]' && pip uninstall -y briton
COPY README.md LICENSE ./
COPY briton briton
COPY server server
COPY engine_builder engine_builder
RUN pip install --no-cache-dir --no-deps .
COPY examples examples
USER briton
VOLUME /cache
EXPOSE 8000
# Building an engine comes first, and takes its time.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["tini", "--", "briton"]
CMD ["serve", "--config", "/opt/briton/examples/smollm2-135m-instruct/config.yaml", "--host", "0.0.0.0"]


FROM ${GPU_BASE} AS gpu

ENV PYTHONUNBUFFERED=1 BRITON_CACHE_DIR=/cache
WORKDIR /opt/briton
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home briton \
    && install -d -o briton -g briton /cache
# What the library was built with stays: the constraints are its own requirements. So does its MPI: no `mpi` extra here.
COPY pyproject.toml ./
COPY constraints constraints
RUN touch README.md && install -D /dev/null briton/__init__.py \
    && pip install --no-cache-dir -c constraints/tensorrt-llm-1.2.1.txt '.[s3,gcs,azure]' && pip uninstall -y briton
COPY README.md LICENSE ./
COPY briton briton
COPY server server
COPY engine_builder engine_builder
RUN pip install --no-cache-dir --no-deps .
USER briton
VOLUME /cache
EXPOSE 8000
# An engine of a large model is built for hours, once.
HEALTHCHECK --interval=15s --timeout=5s --start-period=4h --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["tini", "--", "briton"]
CMD ["serve", "--config", "/config/config.yaml", "--host", "0.0.0.0"]
