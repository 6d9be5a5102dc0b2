# MTGRec in a container; docs/sharing.md says how to build and run it.
FROM python:3.11-slim-bookworm
# Which build of PyTorch: cpu, or one for CUDA such as cu130.
ARG TORCH=cpu
ENV VIRTUAL_ENV=/venv PATH=/venv/bin:$PATH
WORKDIR /mtgrec
COPY requirements.txt .
RUN python -m venv "$VIRTUAL_ENV" \
 && pip install --no-cache-dir "$(grep ^torch== requirements.txt)" --index-url "https://download.pytorch.org/whl/$TORCH" \
 && pip install --no-cache-dir -r requirements.txt
COPY . .
RUN useradd --create-home --uid 1000 mtgrec && mkdir datasets ckpt && chown -R mtgrec .
USER 1000
CMD ["bash", "quickstart.sh"]
