# syntax=docker/dockerfile:1
# The images of raycd, with everything but its tools for development; the packages are those of requirements.lock, each
# with its hash.
#
#   docker build --target cpu  --tag raycd:cpu .
#   docker build --target cuda --tag raycd:cuda .       FAISS for GPUs; the node has the driver for CUDA 13 (580 or newer)
#
# Both have the CUDA libraries that torch's wheel asks for, as there is one wheel of it: 7 GB, with FAISS' own 8.5.
# No secret is read while an image is built, and none is in it: they come by the environment and by mounted files.

ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS lock
WORKDIR /build
COPY requirements.lock ./
RUN for extra in cpu gpu; do \
        awk -v extra="[$extra]" '/^# \[/ { on = $2 == "[all]" || $2 == extra } on' requirements.lock > "$extra.txt"; \
    done; \
    awk '/==/ { on = /^setuptools==/ } on' requirements.lock > build.txt

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /build
COPY --from=lock /build/build.txt ./
RUN python -m pip install --no-cache-dir --require-hashes --no-deps -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY raycd raycd
COPY jobs jobs
COPY serve serve
COPY tune tune
RUN python -m pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir dist .

# What stands in every image: a user without rights, and what KubeRay and Ray ask of an image.
FROM ${PYTHON_IMAGE} AS runtime
# KubeRay's own probes call wget. A fixed version would be gone from Debian with its next security update.
# hadolint ignore=DL3008
RUN apt-get update -qq && \
    apt-get install -y -qq --no-install-recommends wget && \
    rm -rf /var/lib/apt/lists/*
# A login shell, by which KubeRay starts Ray, sets PATH anew.
RUN useradd --uid 1000 --create-home raycd && \
    install -d -o raycd -g raycd /srv/raycd && \
    echo "export PATH=/opt/raycd/bin:\$PATH" > /etc/profile.d/raycd.sh
ENV PATH=/opt/raycd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.security.front:middlewares \
    RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT=1000000
WORKDIR /srv/raycd
EXPOSE 8000
# Ready is that a query of its own is encoded and searched. Jobs have no service: they switch the check off.
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 CMD ["sh", "-c", "raycd client ready || exit 1"]
CMD ["raycd", "serve", "--host", "0.0.0.0"]

FROM ${PYTHON_IMAGE} AS packages-cuda
COPY --from=lock /build/gpu.txt /tmp/requirements.txt
RUN python -m venv /opt/raycd && \
    /opt/raycd/bin/python -m pip install --no-cache-dir --require-hashes --no-deps -r /tmp/requirements.txt
COPY --from=wheel /build/dist /tmp/dist
RUN /opt/raycd/bin/python -m pip install --no-cache-dir --no-index --no-deps /tmp/dist/*.whl

FROM ${PYTHON_IMAGE} AS packages-cpu
COPY --from=lock /build/cpu.txt /tmp/requirements.txt
RUN python -m venv /opt/raycd && \
    /opt/raycd/bin/python -m pip install --no-cache-dir --require-hashes --no-deps -r /tmp/requirements.txt
COPY --from=wheel /build/dist /tmp/dist
RUN /opt/raycd/bin/python -m pip install --no-cache-dir --no-index --no-deps /tmp/dist/*.whl

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton, by which torch.compile makes code for GPUs, calls a C compiler (docs/gpu.md, Compiling).
# hadolint ignore=DL3008
RUN apt-get update -qq && \
    apt-get install -y -qq --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/*
COPY --from=packages-cuda /opt/raycd /opt/raycd
USER 1000

# The last one is what `docker build .` makes.
FROM runtime AS cpu
COPY --from=packages-cpu /opt/raycd /opt/raycd
USER 1000
