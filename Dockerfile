# The image that XPK runs on GKE (docs/tpu.md, 'With XPK on GKE'); not built yet:
#   docker build --tag=IMAGE . && docker push IMAGE
FROM python:3.12-slim

WORKDIR /t5x_variants
COPY setup.py README.md ./
COPY gin/ gin/
COPY t5x_variants/ t5x_variants/
RUN pip install --no-cache-dir '.[tpu]'

# Runs are written by a user who is not root, or by any other one
# (docker run --user), such as the owner of a mounted MODEL_DIR; caches go to the
# home, and a relative MODEL_DIR to runs/, where all of them may write. By number,
# so that Kubernetes sees that it is not root.
RUN useradd --uid=1000 --create-home t5x && chmod 1777 /home/t5x && \
    mkdir --mode=1777 runs
ENV HOME=/home/t5x USER=t5x
USER 1000:1000

# So that Python's lines reach the log as they are written, and SIGTERM reaches
# Python, which saves on it.
ENV PYTHONUNBUFFERED=1
ENTRYPOINT []
CMD ["python", "-m", "t5x_variants.train", "--help"]
