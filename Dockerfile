# The image that XPK runs on GKE (docs/tpu.md, 'With XPK on GKE'):
#   docker build --tag=IMAGE . && docker push IMAGE
FROM python:3.12-slim

WORKDIR /t5x_variants
COPY setup.py README.md ./
COPY gin/ gin/
COPY t5x_variants/ t5x_variants/
RUN pip install --no-cache-dir '.[tpu]'

# So that Python's lines reach the log as they are written, and SIGTERM reaches
# Python, which saves on it.
ENV PYTHONUNBUFFERED=1
ENTRYPOINT []
CMD ["python", "-m", "t5x_variants.train", "--help"]
