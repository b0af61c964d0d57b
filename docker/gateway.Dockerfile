# The gateway: service/, what it imports, and the model that ships. No torch, no compiler, no root.
#
#   docker build -f docker/gateway.Dockerfile -t me5-gateway .
#   docker build -f docker/gateway.Dockerfile -t me5-gateway:triton --build-arg EXTRAS=triton,tracing .
#
# The second one has no engine of its own and serves with ME5_ENGINE=triton alone.

FROM python:3.11-slim AS build
WORKDIR /build
COPY pyproject.toml constraints.txt docker/requirements.py ./
# pip and setuptools stay behind, in this stage. What every gateway needs comes first, for images of all EXTRAS.
RUN python requirements.py > requirements.txt \
    && python -m venv --without-pip /opt/me5 \
    && python -m pip --python /opt/me5/bin/python install --no-cache-dir -c constraints.txt -r requirements.txt
ARG EXTRAS=cpu,openvino,triton,tracing
RUN python requirements.py "$EXTRAS" > requirements.txt \
    && python -m pip --python /opt/me5/bin/python install --no-cache-dir -c constraints.txt -r requirements.txt
# OpenVINO's plugins for other devices and its readers of other formats: 75 MB that nothing here opens.
RUN for part in intel_gpu_plugin intel_npu_plugin gguf_frontend jax_frontend paddle_frontend pytorch_frontend \
        tensorflow_frontend tensorflow_lite_frontend; do \
        rm -f /opt/me5/lib/python3*/site-packages/openvino/libs/libopenvino_$part.so*; \
    done \
    && rm -f /opt/me5/lib/python3*/site-packages/openvino/libs/cache.json
COPY service /app/service
COPY docker/healthcheck.py /app/
# Where the root is read-only Python can't keep what it compiles; hashes, as the files' times differ between layers.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app

FROM python:3.11-slim
LABEL org.opencontainers.image.title="me5-gateway" \
      org.opencontainers.image.description="Multilingual E5 text embeddings over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
# For ME5_CACHE_DIR on a volume: a new volume takes over this owner. Optimised models are as good as programs.
RUN install -d -o 10001 -g 10001 -m 700 /var/cache/me5
COPY --from=build /opt/me5 /opt/me5
COPY --from=build /app /app
COPY LICENSE /app/
COPY model_repo /app/model_repo
ENV PATH=/opt/me5/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    ME5_HOST=0.0.0.0
WORKDIR /app
# A number: Kubernetes' runAsNonRoot does not look names up.
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-I", "-S", "/app/healthcheck.py"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
