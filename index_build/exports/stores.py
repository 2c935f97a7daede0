"""Milvus and Qdrant: rows are put in by key, so an export that was interrupted is run again and repeats nothing."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from data_shards.errors import UserError
from data_shards.remote.transfer import in_a_line, without_secrets
from index_build.exports.rows import Batch, ExportRows

_log = logging.getLogger(__name__)
_ROWS_AT_ONCE = 512
_MOST_ID_CHARS = 512
_MOST_TEXT_BYTES = 65_535
_TIMEOUT_S = 60

StoreKind = Literal["milvus", "qdrant"]


class Store(Protocol):
    """A collection of a vector store."""

    def open(self, dim: int, *, texts: bool, replace: bool) -> int:
        """Make the collection unless it is there, or anew; return the length of its vectors."""

    def put(self, batch: Batch) -> None:
        """Put rows in, in the place of those with the same keys."""

    def count(self) -> int:
        """Return how many rows there are."""

    def close(self) -> None:
        """Flush and leave."""


def to_store(kind: StoreKind, rows: ExportRows, place: str, collection: str, *, replace: bool) -> int:
    """Export to a store.

    Args:
        kind: which.
        rows: what.
        place: a file (Milvus Lite), a folder (Qdrant's local mode), or the URL of a server.
        collection: name.
        replace: empty the collection first.

    Returns:
        How many rows the collection holds now: more than were exported, if others were in it before.

    Raises:
        UserError: the client is not installed, the store refuses, or the collection holds other vectors.
    """
    with _one_line(kind, place):
        store: Store = (MilvusStore if kind == "milvus" else QdrantStore)(place, collection)
        try:
            dim = store.open(rows.vectors.dim, texts=rows.has_texts, replace=replace)
            if dim != rows.vectors.dim:
                raise UserError(
                    f"collection {collection} holds vectors of {dim}, the embedding set of {rows.vectors.dim}; "
                    "choose another --collection, or --replace it"
                )
            for batch in rows.batches(_ROWS_AT_ONCE):
                store.put(batch)
            found = store.count()
        finally:
            store.close()
    if found < len(rows):
        raise UserError(f"collection {collection} came to {found} rows, wanted {len(rows)}; run the export again")
    if found > len(rows):
        _log.warning(
            "collection %s holds %d rows beside those exported; --replace begins with none",
            collection,
            found - len(rows),
        )
    return found


class MilvusStore:
    """A Milvus collection; the key is the passage's id."""

    def __init__(self, place: str, collection: str) -> None:
        """Connect; MILVUS_TOKEN holds the key of a server that wants one."""
        client = _client("pymilvus", "milvus").MilvusClient
        self._kinds = importlib.import_module("pymilvus").DataType
        self._collection = collection
        self._client: Any = client(uri=place, token=os.environ.get("MILVUS_TOKEN", ""), timeout=_TIMEOUT_S)

    def open(self, dim: int, *, texts: bool, replace: bool) -> int:
        """See `Store`."""
        if replace and self._client.has_collection(self._collection):
            self._client.drop_collection(self._collection)
        if self._client.has_collection(self._collection):
            fields = self._client.describe_collection(self._collection)["fields"]
            return int(next((row["params"]["dim"] for row in fields if row["name"] == "vector"), 0))
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", self._kinds.VARCHAR, is_primary=True, max_length=_MOST_ID_CHARS)
        schema.add_field("vector", self._kinds.FLOAT_VECTOR, dim=dim)
        for name in ("title", "text") if texts else ():
            schema.add_field(name, self._kinds.VARCHAR, max_length=_MOST_TEXT_BYTES)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        self._client.create_collection(self._collection, schema=schema, index_params=index)
        return dim

    def put(self, batch: Batch) -> None:
        """See `Store`."""
        for name in batch.ids:
            if len(name.encode()) > _MOST_ID_CHARS:
                raise UserError(f"id {name[:60]!r}… has more than the {_MOST_ID_CHARS} bytes that Milvus takes")
        rows: list[dict[str, Any]] = [
            {"id": name, "vector": vector} for name, vector in zip(batch.ids, batch.vectors.tolist(), strict=True)
        ]
        for row, title, text in zip(rows, batch.titles or (), batch.texts or (), strict=False):
            row |= {"title": _cut(title), "text": _cut(text)}
        self._client.upsert(self._collection, rows)

    def count(self) -> int:
        """See `Store`."""
        self._client.flush(self._collection)
        self._client.load_collection(self._collection)
        found = self._client.query(
            self._collection, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(found[0]["count(*)"])

    def close(self) -> None:
        """See `Store`."""
        self._client.close()


class QdrantStore:
    """A Qdrant collection; its keys are UUIDs made from passage ids, which are in the payload."""

    def __init__(self, place: str, collection: str) -> None:
        """Connect; QDRANT_API_KEY holds the key of a server that wants one."""
        client = _client("qdrant_client", "qdrant").QdrantClient
        self._models: Any = importlib.import_module("qdrant_client.models")
        self._collection = collection
        remote = {"url": place, "api_key": os.environ.get("QDRANT_API_KEY"), "timeout": _TIMEOUT_S}
        remote["check_compatibility"] = False  # a look at a server that is away warns, and so does the first call
        self._client: Any = client(**(remote if "://" in place else {"path": place}))

    def open(self, dim: int, *, texts: bool, replace: bool) -> int:
        """See `Store`."""
        if replace and self._client.collection_exists(self._collection):
            self._client.delete_collection(self._collection)
        if self._client.collection_exists(self._collection):
            vectors = self._client.get_collection(self._collection).config.params.vectors
            return int(getattr(vectors, "size", 0))
        made = self._models.VectorParams(size=dim, distance=self._models.Distance.DOT)
        self._client.create_collection(self._collection, vectors_config=made)
        return dim

    def put(self, batch: Batch) -> None:
        """See `Store`."""
        payloads: list[dict[str, str]] = [{"id": name} for name in batch.ids]
        for payload, title, text in zip(payloads, batch.titles or (), batch.texts or (), strict=False):
            payload |= {"title": title, "text": text}
        keys = [key_of(name) for name in batch.ids]
        points = self._models.Batch(ids=keys, vectors=batch.vectors.tolist(), payloads=payloads)
        self._client.upsert(self._collection, points, wait=True)

    def count(self) -> int:
        """See `Store`."""
        return int(self._client.count(self._collection, exact=True).count)

    def close(self) -> None:
        """See `Store`."""
        self._client.close()


def key_of(passage_id: str) -> str:
    """Return the UUID under which a store that wants one keeps a passage: the beginning of its id's SHA-256."""
    return str(uuid.UUID(bytes=hashlib.sha256(passage_id.encode()).digest()[:16]))


def _cut(text: str) -> str:
    """Cut a text to what Milvus holds in a field."""
    return text.encode()[:_MOST_TEXT_BYTES].decode(errors="ignore")


def _client(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"export to {extra} needs {module}: pip install 'dipole[{extra}]'") from None


@contextmanager
def _one_line(kind: StoreKind, place: str) -> Iterator[None]:
    """Turn whatever a store's client raises into one line."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        said = in_a_line(error)
        raise UserError(f"{kind} at {without_secrets(place)} refuses: {said}") from error
