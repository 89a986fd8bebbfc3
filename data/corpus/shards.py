"""Output shards: files that are complete or absent, with the same bytes on every run, and notes of finished slices.

When a stage has finished a slice it writes a note, `<folder>/done/<stage>/<index>.done`, after all files of the slice:
the config's hash, counts, and name, rows, bytes and checksum of every file. A killed process leaves a temporary file
behind, which `files.sweep` removes; a writer that lives holds a lock on its own.
"""

import contextlib
import hashlib
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol

import orjson
import zstandard

from alignment import files
from alignment.errors import InputError
from data import lines, tables

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_BUFFER = 1 << 20  # bytes handed to the compressor at a time
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


def write(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Write rows to a file that takes its name once all of them are on disk.

    Args:
        path: its ending chooses the format: .jsonl, .jsonl.gz (no time in the header), .jsonl.zst (level 3, one
            thread), or .parquet for documents, with their metadata as JSON text. The bytes depend on the rows alone.

    Returns:
        {"rows", "bytes", "sha256"} of the file as it lies on disk.

    Raises:
        InputError: another ending, or a parquet shard without pyarrow.
    """
    with writers({"": path}) as opened:
        for row in rows:
            opened[""].add(row)
    return opened[""].summary


@contextlib.contextmanager
def writers(paths: Mapping[str, str | os.PathLike]) -> Iterator[dict[str, "Writer"]]:
    """Write several shards side by side.

    `opened[name].add(row)` writes a row; after the block `opened[name].summary` is what `write` returns.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[str, Writer] = {}
        for name, path in paths.items():
            path = pathlib.Path(path)
            if not path.name.endswith(ENDINGS):
                raise InputError(f"shard {path}: a shard's name ends in one of {', '.join(ENDINGS)}")
            sink = stack.enter_context(whole_file(path))
            opened[name] = _Table(sink) if path.name.endswith(".parquet") else _Lines(sink, path.suffix)
        yield opened
        for writer in opened.values():
            writer.close()


def read(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The rows of a shard, in order.

    Raises:
        InputError: the shard is damaged. Since no shard is ever incomplete, somebody altered it.
    """
    if os.fspath(path).endswith(".parquet"):
        yield from _read_parquet(path)
        return
    try:
        for _, line in lines.split(lines.chunks(os.fspath(path))):
            yield orjson.loads(line)  # type: ignore[arg-type]  # without a limit no length stands for a line
    except (lines.Damaged, orjson.JSONDecodeError) as e:
        raise InputError(f"shard {path} was altered: {e}. Remove it, and its slice is done again") from e


def finish(folder: str | os.PathLike, stage: str, index: int, row: Mapping[str, Any]) -> None:
    """Note that a stage has finished a slice; call it after the slice's files are written.

    Args:
        row: `config_hash`, `outputs` as {name below folder: what `write` returned}, and further counts. Runs that give
            the same files also give the same note, as long as the row holds no time.

    Raises:
        ValueError: `config_hash` or `outputs` is missing.
    """
    for key in ("config_hash", "outputs"):
        if key not in row:
            raise ValueError(f"the row of slice {index} of stage {stage} has no {key!r}")
    with whole_file(_note(folder, stage, index)) as sink:
        sink.write(orjson.dumps(row, option=_OPTIONS))


def finished(
    folder: str | os.PathLike, stage: str, config_hash: str, *, is_checked: bool = False
) -> dict[int, dict[str, Any]]:
    """The slices that a stage has finished, as {index: row of `finish`}; see `each_finished`."""
    return dict(each_finished(folder, stage, config_hash, is_checked=is_checked))


def each_finished(
    folder: str | os.PathLike, stage: str, config_hash: str, *, is_checked: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, row of `finish`) of each slice that a stage has finished, in the order of the indices.

    A slice is left out when one of its files is gone or has another size, or when its note cannot be read.

    Args:
        is_checked: read every file and compare its checksum too.

    Raises:
        InputError: a slice was finished under another config.
    """
    where = pathlib.Path(folder) / "done" / stage
    for note in sorted(where.glob("*.done")) if where.is_dir() else []:
        try:
            row = orjson.loads(note.read_bytes())
            note_hash, outputs = row["config_hash"], row["outputs"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue
        if note_hash != config_hash:
            raise InputError(
                f"{folder} holds slices of stage {stage} done under another config (hash {note_hash}, this run's is "
                f"{config_hash}); choose another output folder, go back to that config, or remove that folder"
            )
        if all(_is_intact(pathlib.Path(folder, name), output, is_checked) for name, output in outputs.items()):
            yield int(note.stem), row


def forget(
    folder: str | os.PathLike, stage: str, config_hash: str, *, which: Callable[[int], bool] = lambda index: True
) -> int:
    """Remove the notes of slices that a stage finished under another config, and return how many there were.

    Their files go too, since the new ones may have other names (another compression) and would lie beside them.

    Args:
        config_hash: of the notes that stay; "" lets none stay.
        which: whether to look at the note of a slice, by the slice's index.
    """
    num_notes, root = 0, pathlib.Path(folder).resolve()
    for note in (pathlib.Path(folder) / "done" / stage).glob("*.done"):
        if not which(int(note.stem)):
            continue
        with contextlib.suppress(orjson.JSONDecodeError):
            row = orjson.loads(note.read_bytes())
            if row.get("config_hash") == config_hash:
                continue
            for name in row.get("outputs", ()):
                if root in (path := root / name).resolve().parents:  # an altered note must not reach outside
                    path.unlink(missing_ok=True)
        note.unlink()
        num_notes += 1
    return num_notes


class Sink:
    """A file that counts and hashes what is written to it, with the methods that pyarrow asks of a file."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.sha256, self.closed = file, 0, hashlib.sha256(), False

    def write(self, content: bytes | bytearray) -> int:
        self.file.write(content)
        self.sha256.update(content)
        self.size += len(content)
        return len(content)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.file.flush()

    def summary(self, num_rows: int) -> dict[str, Any]:
        """What `finish` records of the file."""
        return {"rows": num_rows, "bytes": self.size, "sha256": self.sha256.hexdigest()}


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Sink]:
    """`files.replacing` with a count and a checksum; every process writes, where `files.write` lets the first alone."""
    with files.replacing(path) as file:
        yield Sink(file)


class Writer(Protocol):
    """An open shard; `summary` is complete once it is closed."""

    summary: dict[str, Any]

    def add(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Rows as JSON lines."""

    def __init__(self, sink: Sink, packed: str):
        self._sink, self._buffer, self._num_rows = sink, bytearray(), 0
        self._pack: Any = None  # None writes the lines as they are
        self.summary: dict[str, Any] = {}
        if packed == ".gz":
            self._pack = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: a gzip header, which zlib writes without a time
        elif packed == ".zst":
            # threads=0 compresses in this thread; threads of zstandard's own would cut the frame into other blocks.
            self._pack = zstandard.ZstdCompressor(level=3, threads=0, write_checksum=True).compressobj()

    def add(self, row: Mapping[str, Any]) -> None:
        self._buffer += orjson.dumps(row, option=_OPTIONS)
        self._num_rows += 1
        if len(self._buffer) >= _BUFFER:
            self._sink.write(self._pack.compress(self._buffer) if self._pack else self._buffer)
            self._buffer = bytearray()

    def close(self) -> None:
        self._sink.write(self._pack.compress(self._buffer) + self._pack.flush() if self._pack else self._buffer)
        self.summary = self._sink.summary(self._num_rows)


class _Table:
    """Documents as rows of a parquet file, their metadata as JSON text."""

    def __init__(self, sink: Sink):
        self._pyarrow = tables.import_pyarrow("a .parquet shard")
        self._schema = self._pyarrow.schema(
            [(name, self._pyarrow.string()) for name in ("id", "text", "source", "metadata")]
        )
        options = {"compression": "zstd", "compression_level": 3}
        self._sink, self._writer = sink, self._pyarrow.parquet.ParquetWriter(sink, self._schema, **options)
        self._rows: list[dict[str, Any]] = []  # of the next row group
        self._num_chars, self._num_rows = 0, 0  # of those rows' texts; rows of the whole file
        self.summary: dict[str, Any] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        metadata = orjson.dumps(row["metadata"], option=orjson.OPT_SERIALIZE_NUMPY).decode()
        self._rows.append({**row, "metadata": metadata})
        self._num_chars += len(row["text"])
        self._num_rows += 1
        if self._num_chars >= 8 * _BUFFER:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self.summary = self._sink.summary(self._num_rows)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows, self._num_chars = [], 0


def _read_parquet(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    pyarrow = tables.import_pyarrow(path)
    try:
        for batch in pyarrow.parquet.ParquetFile(path, pre_buffer=False).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield {**row, "metadata": orjson.loads(row["metadata"])}
    except (pyarrow.ArrowException, orjson.JSONDecodeError) as e:
        raise InputError(f"shard {path} was altered: {e}. Remove it, and its slice is done again") from e


def _note(folder: str | os.PathLike, stage: str, index: int) -> pathlib.Path:
    return pathlib.Path(folder) / "done" / stage / f"{index:08d}.done"


def _is_intact(path: pathlib.Path, output: Mapping[str, Any], is_checked: bool) -> bool:
    try:
        if path.stat().st_size != output["bytes"]:
            return False
        if is_checked:
            with open(path, "rb") as f:
                return hashlib.file_digest(f, "sha256").hexdigest() == output["sha256"]
    except OSError:
        return False
    return True
