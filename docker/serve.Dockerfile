# Serves an export, without torch: docker build -f docker/serve.Dockerfile -t pyrskip-serve .
# docker run -p 8000:8000 -v "$PWD/exports/easy_vqa:/model:ro" pyrskip-serve
FROM python:3.11-slim-bookworm AS dependencies
WORKDIR /build
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/pyrskip \
    && python requirements.py pyproject.toml serve > requirements.txt \
    && pip --python /opt/pyrskip/bin/python install --constraint constraints.txt --requirement requirements.txt

FROM dependencies AS package
COPY . /source
RUN pip --python /opt/pyrskip/bin/python install --no-cache-dir --no-deps --prefix /package /source

FROM python:3.11-slim-bookworm
COPY --from=dependencies /opt/pyrskip /opt/pyrskip
COPY --from=package /package /opt/pyrskip
RUN useradd --system --uid 1000 pyrskip
ENV PATH=/opt/pyrskip/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["pyrskip", "serve", "model=/model", "host=0.0.0.0", "port=8000"]
