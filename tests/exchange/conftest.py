"""An S3-compatible server on loopback (moto), and files to put there.

What lies in the bucket is read and damaged with boto3, which civman does not use.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from running import Civman

from civman.demo.server import CivitaiServer


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto_server = pytest.importorskip("moto.server", reason="needs the extra dev: moto")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of its own for an empty server."""
    boto3 = pytest.importorskip("boto3", reason="needs the extra dev: moto")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client._endpoint.http_session.close()  # boto3 keeps idle connections, which no test may leave
    for bucket in client.list_buckets()["Buckets"]:
        for each in client.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
            client.delete_object(Bucket=bucket["Name"], Key=each["Key"])
        client.delete_bucket(Bucket=bucket["Name"])
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()


@pytest.fixture
def url(s3: Any, endpoint: str) -> str:
    return f"s3://bucket/models?endpoint={endpoint}"


@pytest.fixture
def held(online: CivitaiServer, civman: Civman) -> list[str]:
    """The SHA-256 of a LoRA with a preview, and of an embedding."""
    civman("download", "@160211", "71820", "--preview", "any")
    civman("edit", "@160211", "--note", "mine", "--alias", "ink")
    return [each["blob"]["sha256"] for each in civman("list", "--json").json["list"]["assets"]]
