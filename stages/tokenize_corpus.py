"""Turn documents into token shards for pretraining (§2.2).

    rlhf stage tokenize_corpus --recipe demo
    python -m stages.tokenize_corpus --config corpus.json --home RLHF_HOME

Every document is <s> … </s>. The table keeps the bytes of each text, so that a loss per token can
be told as bits per byte, which vocabularies of different sizes share.
"""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.errors import UserError
from data_contracts.parquet import iter_batches, write_table
from data_contracts.ratings import Split
from data_contracts.splits import split_of
from data_contracts.tables import CONTRACTS
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.text.tokenizer import Tokenizer

VERSION = "1"


class TokenizeCorpusSettings(Contract):
    """How documents are held out and cut into files."""

    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of documents, chosen by a hash of their ids, that only the loss is measured on."""
    rows_per_shard: int = Field(default=65_536, gt=0, le=65_536)
    """Documents in a file, at most."""
    num_threads: int = Field(default=1, gt=0, json_schema_extra={"in_key": False})


class Config(StageConfig, TokenizeCorpusSettings):
    """Settings and inputs."""

    documents: ArtifactRef
    tokenizer: ArtifactRef


def run(config: Config, work: WorkDir) -> StageOutput:
    """Tokenise shard by shard; the same documents give the same files."""
    folder = work.output("token_shards")
    contract = CONTRACTS["token_shards"]
    artifacts = {"token_shards": (folder, contract.kind)}
    if not work.rank.is_main:
        return StageOutput(artifacts)
    tokenizer = Tokenizer.load(work.input(config.tokenizer))
    documents = work.input(config.documents)
    num_documents = sum(pq.read_metadata(path).num_rows for path in documents.glob("*.parquet"))
    counts: Counter[str] = Counter()
    batches = iter_batches(documents, CONTRACTS["documents"], config.rows_per_shard)
    for index, batch in enumerate(batches):
        shard = tokenize(batch, tokenizer, config)
        write_table(folder / f"shard-{index:05d}.parquet", iter([shard]), contract)
        _count(shard, counts)
        work.progress(counts["documents"], num_documents, "document", tokens=counts["tokens"])
    if not counts["documents"]:
        raise UserError("There are no documents to tokenise", "Ingest a source of documents")
    return StageOutput(artifacts, {name: float(count) for name, count in sorted(counts.items())})


def tokenize(
    documents: pa.RecordBatch, tokenizer: Tokenizer, settings: TokenizeCorpusSettings
) -> pa.RecordBatch:
    """Rows of token_shards for a batch of documents, in the same order."""
    ids = documents.column("document_id")
    texts = documents.column("text")
    encoded = tokenizer.encode_many(texts.to_pylist(), settings.num_threads)
    splits = [
        split_of(document_id, 0.0, settings.validation_fraction) for document_id in ids.to_pylist()
    ]
    columns = {
        "document_id": ids,
        "source": documents.column("source"),
        "split": pa.array(splits, pa.string()),
        "num_bytes": pc.cast(pc.call_function("binary_length", [texts]), pa.int64()),
        "tokens": _enclosed(encoded, tokenizer.bos_id, tokenizer.eos_id),
    }
    return pa.RecordBatch.from_pydict(columns, schema=CONTRACTS["token_shards"].schema)


def _enclosed(encoded: list[np.ndarray], bos_id: int, eos_id: int) -> pa.ListArray:
    """Each document between bos and eos, as one flat int32 array with offsets."""
    lengths = np.array([len(ids) + 2 for ids in encoded], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.empty(offsets[-1], np.int32)
    for start, ids in zip(offsets[:-1], encoded, strict=True):
        flat[start + 1 : start + 1 + len(ids)] = ids
    flat[offsets[:-1]] = bos_id
    flat[offsets[1:] - 1] = eos_id
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat))


def _count(shard: pa.RecordBatch, counts: Counter[str]) -> None:
    is_validation = np.array(shard.column("split").to_pylist()) == Split.validation
    counts["documents"] += shard.num_rows
    counts["validation_documents"] += int(is_validation.sum())
    counts["tokens"] += len(shard.column("tokens").values)
    counts["bytes"] += int(shard.column("num_bytes").to_numpy().sum())


if __name__ == "__main__":
    main(Config, run)
