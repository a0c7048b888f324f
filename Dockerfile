# `smidgen serve` in a container: docs/serving.md says how it is built and run.
# On NVIDIA GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128; the wheels bring CUDA.
ARG PYTHON=python:3.11-slim
FROM ${PYTHON}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src ./src
RUN torch="$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir --index-url "${TORCH_INDEX}" "${torch}" \
    && pip install --no-cache-dir -c constraints.txt . \
    && rm -rf /build

RUN useradd --create-home smidgen && mkdir /deltas && chown smidgen /deltas
USER smidgen
WORKDIR /home/smidgen
VOLUME /deltas
EXPOSE 8000
HEALTHCHECK --start-period=2m CMD ["python", "-c", \
    "import urllib.request as ask; ask.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# others can reach a container: without SMIDGEN_API_KEY in its environment the server does not start
ENTRYPOINT ["smidgen", "serve", "--host", "0.0.0.0", "--port", "8000", "--deltas", "/deltas"]
CMD ["--base", "glyphs"]
