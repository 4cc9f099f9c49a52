# The image of every pod in jobs/cluster, and of `attempt` anywhere else.
#   docker build -t registry.example.com/attempt-ray:0.1.0-ray2.60.0 .
# PyPI's torch brings CUDA; for a processor alone:
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://pypi.org/simple
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/attempt
ENV PATH=/opt/attempt/bin:$PATH
WORKDIR /build
COPY requirements ./requirements
RUN pip install --require-hashes --no-deps --requirement requirements/lock.txt \
 && pip install --index-url ${TORCH_INDEX} ${TORCH}
COPY pyproject.toml README.md LICENSE ./
COPY attempt_ray ./attempt_ray
COPY jobs ./jobs
COPY serve_app ./serve_app
COPY tune_spaces ./tune_spaces
# What builds and tests the package goes, and pip goes last.
RUN pip install --no-deps --no-build-isolation . \
 && pip uninstall --yes pytest pytest-timeout pytest-xdist moto openai schemathesis selenium tritonclient ruff mypy types-pyyaml import-linter hatchling editables \
 && pip check \
 && pip uninstall --yes pip

FROM ${PYTHON}
# KubeRay asks a pod for its health with wget, and some versions of it start Ray in a login shell.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home attempt \
 && echo 'export PATH=/opt/attempt/bin:$PATH' > /etc/profile.d/attempt.sh
COPY --from=build /opt/attempt /opt/attempt
ENV PATH=/opt/attempt/bin:$PATH PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/attempt
CMD ["attempt", "--help"]
