# MTGRec in a container; docs/sharing.md says how to build and run it.
FROM python:3.11-slim-bookworm
# Address of more packages of PyTorch, from pytorch.org: for the CPU alone, or for another CUDA than that of PyPI's.
ARG TORCH_INDEX=
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX VIRTUAL_ENV=/venv PATH=/venv/bin:$PATH
WORKDIR /mtgrec
COPY requirements.txt .
RUN python -m venv "$VIRTUAL_ENV" && pip install --no-cache-dir -r requirements.txt
COPY . .
RUN useradd --create-home --uid 1000 mtgrec && mkdir datasets ckpt && chown -R mtgrec .
USER 1000
CMD ["bash", "quickstart.sh"]
