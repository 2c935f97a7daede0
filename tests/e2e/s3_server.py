"""A real S3 server on loopback: moto's, with its requests counted and, where a test wants it, slowed down."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]


class S3Server:
    """Serves buckets from memory until it is closed."""

    def __init__(self) -> None:
        self.gets = Counter[str]()
        """Bodies asked for, by bucket and key."""
        self.slow_s = 0.0
        """How long each body takes to begin."""
        self._answer = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._count, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="loopback",
            aws_secret_access_key="very-secret",
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def upload(self, folder: Path, bucket: str) -> str:
        """Put a folder's files into a bucket and return its URL."""
        self.client.create_bucket(Bucket=bucket)
        for path in sorted(folder.iterdir()):
            self.client.upload_file(str(path), bucket, f"data/{path.name}")
        return f"s3://{bucket}/data"

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()

    def _count(self, environment: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] == "GET":
            self.gets[environment["PATH_INFO"]] += 1
            time.sleep(self.slow_s)
        return self._answer(environment, start)
