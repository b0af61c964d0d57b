# Everything in training/: prepare, pretrain, mine, teach, finetune, evaluate, export.
#
#   docker build -f docker/training.Dockerfile -t me5-training .
#   docker run --rm --gpus all -v "$PWD/data:/data:ro" -v "$PWD/runs:/runs" --user "$(id -u)" --shm-size 2g \
#       me5-training run training/configs/me5_small.toml --data /data --out /runs
#
# torch as it is on PyPI brings its CUDA libraries. For CPUs alone name an index of such builds, and it is a quarter of
# the size: --build-arg TORCH_INDEX=… ; for another CUDA, or a torch that is there already: --build-arg BASE=IMAGE

ARG BASE=python:3.11-slim
FROM ${BASE} AS build
ARG TORCH_INDEX=
WORKDIR /build
COPY pyproject.toml constraints.txt docker/requirements.py ./
# torch first and by itself: a build for CPUs alone satisfies what the other packages ask for.
RUN python -m venv --without-pip --system-site-packages /opt/me5 \
    && python -m pip --python /opt/me5/bin/python install --no-cache-dir -c constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} 'torch>=2.5,<2.14'
ARG EXTRAS=cpu,openvino,training
RUN python requirements.py "$EXTRAS" > requirements.txt \
    && python -m pip --python /opt/me5/bin/python install --no-cache-dir -c constraints.txt -r requirements.txt

FROM ${BASE}
LABEL org.opencontainers.image.title="me5-training" \
      org.opencontainers.image.description="Train, evaluate and export Multilingual E5 text embeddings" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/me5 /opt/me5
WORKDIR /app
COPY LICENSE ./
COPY service service
COPY training training
# Libraries keep kernels, downloads and fonts in a home, in folders named by the user: who has only a number needs both.
ENV PATH=/opt/me5/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    LOGNAME=me5
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
