# Brain in a container, for a PostgreSQL of your own: docs/how-to/operations.md, "In a container".
#   docker build -t brain . && docker run -p 127.0.0.1:5221:5221 -e BRAIN_DATABASE_URL=… brain

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY requirements-server.lock ./
RUN python -m venv /opt/brain && \
    /opt/brain/bin/pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: -r requirements-server.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/brain/bin/pip install --no-cache-dir --disable-pip-version-check \
        --no-deps --no-build-isolation . && \
    /opt/brain/bin/pip uninstall --yes --quiet hatchling pip

FROM python:${PYTHON}-slim
COPY --from=build /opt/brain /opt/brain
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/brain
# The embedded PostgreSQL is not in here: a container without a database must not make one up.
ENV PATH=/opt/brain/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    BRAIN_EMBEDDED=false \
    BRAIN_DATA_DIR=/var/lib/brain
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/brain
EXPOSE 5221
# The process answers. Whether it follows the database is what /readyz says: a database that is away
# is no reason to restart Brain, whose clients wait.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('BRAIN_PORT') or 5221), timeout=2); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["brain"]
CMD ["serve"]
