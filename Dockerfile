# One image for every service: `docker build -t muster .`, then `docker run muster python -m services.broker ...`.
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proto/gen proto/gen
COPY services services
COPY agent_client agent_client
RUN python -m venv /opt/muster \
 && /opt/muster/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM ${PYTHON_IMAGE}
# 65532 is the customary id of an unprivileged user in images without a password file.
USER 65532:65532
COPY --from=build /opt/muster /opt/muster
ENV PATH=/opt/muster/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# registry, scheduler, broker, audit; metrics are 50 above.
EXPOSE 7401 7402 7403 7404 7451 7452 7453 7454
WORKDIR /var/lib/muster
CMD ["python", "-m", "services.registry", "--help"]
