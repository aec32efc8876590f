FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gateway gateway
COPY fallbacks fallbacks
# No pip in the image that runs: the builder's own installs into an environment without one.
RUN python -m venv --without-pip /opt/gateway \
    && pip --python /opt/gateway/bin/python install --no-cache-dir --constraint constraints.txt ".[speed,top]"

FROM python:3.13-slim
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH PYTHONUNBUFFERED=1
# What the demo remembers; a volume there outlives the container.
ENV XDG_CACHE_HOME=/var/cache/gateway
RUN useradd --system --uid 10001 --no-create-home gateway \
    && install --directory --owner gateway --group gateway --mode 0700 "$XDG_CACHE_HOME"
VOLUME /var/cache/gateway
USER gateway
EXPOSE 8080 8081 8082 8083
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/health', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["demo", "--host", "0.0.0.0"]
