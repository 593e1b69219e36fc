# rose_d2 with the tiny model: docker build -t rose_d2 . && docker run -v "$PWD/photos:/photos" rose_d2
# The demo's arguments follow the image's name; add --gpus all where the NVIDIA toolkit is installed.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /rose_d2
COPY . .
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && make setup

ENTRYPOINT [".venv/bin/python", "demo/demo.py"]
CMD ["--input", "/photos", "--output", "/photos/rose"]
