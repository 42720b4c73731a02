"""Files as users have them: compressed, in other containers, and what is said of those."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import pytest

from llmsched_env.calibration import fit_cost_model
from llmsched_env.errors import FileFormatError
from llmsched_env.workload import CsvWorkload, TraceWorkload, read_requests_csv, text_file, workload

CSV = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},{i + 1},{i + 2}\n" for i in range(50))
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"2023-11-16 18:17:{i:02},3,5\n" for i in range(50))
JSONL = "".join(json.dumps({"timestamp": 1000 * i, "input_length": 3, "output_length": 5}) + "\n" for i in range(50))
ITERATIONS = (
    "kind,prefill_tokens,active_clients,duration_s\nprefill,100,,0.020\nprefill,200,,0.030\nprefill,300,,0.040\n"
    "decode,,10,0.011\ndecode,,20,0.012\ndecode,,30,0.013\n"
)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [("mine.csv", CSV, CsvWorkload), ("azure.csv", AZURE, TraceWorkload), ("moon.jsonl", JSONL, TraceWorkload)],
)
def test_a_file_compressed_with_gzip_reads_as_the_plain_one(tmp_path, name, text, kind):
    plain, packed, renamed = tmp_path / name, tmp_path / f"{name}.gz", tmp_path / f"renamed-{name}"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    renamed.write_bytes(packed.read_bytes())  # the contents say what it is, not the name
    expected = workload(plain).requests("train", 0, num_requests=None if kind is CsvWorkload else 20)
    for path in (packed, renamed):
        for found in (workload(path), workload(str(path))):
            assert type(found) is kind
            assert found.requests("train", 0, num_requests=len(expected)).digest() == expected.digest()
    assert workload(packed).name == workload(plain).name == name.partition(".")[0]
    traced = TraceWorkload(packed, num_requests=20)
    assert traced.requests("train", 0).digest() == TraceWorkload(plain, num_requests=20).requests("train", 0).digest()


def test_recorded_iterations_may_be_compressed(tmp_path):
    (tmp_path / "a.csv").write_text(ITERATIONS)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(ITERATIONS.encode()))
    assert fit_cost_model(tmp_path / "a.csv.gz") == fit_cost_model(tmp_path / "a.csv")


def test_a_damaged_or_endless_compressed_file(tmp_path, monkeypatch):
    path, packed = tmp_path / "mine.csv.gz", gzip.compress(CSV.encode())
    for damaged in (packed[:-20], packed[:30] + b"\0" * 8 + packed[38:], packed[:2] + b"\xff" * 20):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"gz: is compressed, and damaged \(.*fetch or compress it again"):
            read_requests_csv(path)
    path.write_bytes(packed)
    monkeypatch.setattr(text_file, "MAX_UNPACKED_BYTES", len(CSV) - 1)
    with pytest.raises(FileFormatError, match=rf"is compressed, and holds more than {len(CSV) - 1} bytes: unpack it"):
        read_requests_csv(path)
    monkeypatch.setattr(text_file, "MAX_UNPACKED_BYTES", len(CSV))
    assert len(read_requests_csv(path)) == 50


def in_zip(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mine.csv", text)
    return file.getvalue()


def in_tar(text: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("mine.csv")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    return file.getvalue()


def as_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


UNPACK = r": unpack it first, or compress it with gzip"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.zip", in_zip(CSV), r"is a zip archive \(as Excel files are\)" + UNPACK),
        ("a.xlsx", in_zip(CSV), "is a zip archive"),
        ("a.csv.bz2", bz2.compress(CSV.encode()), "is compressed with bzip2" + UNPACK),
        ("a.csv.xz", lzma.compress(CSV.encode()), "is compressed with xz" + UNPACK),
        ("a.csv.zst", b"\x28\xb5\x2f\xfd" + b"0" * 20, "is compressed with zstd" + UNPACK),
        ("a.tar.gz", in_tar(CSV), "is a tar archive" + UNPACK),
        ("a.parquet", b"PAR1" + b"\0" * 20, r"is a Parquet file: write it as CSV \(pandas.read_parquet"),
        ("a.feather", b"ARROW1" + b"\0" * 20, "is an Arrow file: write it as CSV"),
        ("a.npy", as_array(), "is a numpy array: write it as CSV"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS .* git lfs pull"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("a.csv.gz", gzip.compress(gzip.compress(CSV.encode())), "is compressed twice: unpack it once"),
        ("a.csv", CSV.encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("a.csv", b"<!DOCTYPE html>\n<html></html>\n", "is a web page and not the file: download the file itself"),
        ("a.json", b'[\n{"timestamp": 0}]\n', r"is one JSON array: write one object a line \(jq -c '\.\[\]'\)"),
        ("a.tsv", b"prompt_tokens\toutput_tokens\n3\t5\n", "separated by tabs. Separate cells by commas"),
    ],
)  # fmt: skip
def test_other_containers_are_named_with_the_remedy(tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    given = path if name == "a.tar.gz" else str(path)
    with pytest.raises(FileFormatError, match=words):
        workload(given).requests("train", 0)
    if name != "a.tsv":
        with pytest.raises(FileFormatError, match=words):
            _ = TraceWorkload(path).skipped
    if name.startswith("a.csv") or name == "a.zip":
        with pytest.raises(FileFormatError, match=words):
            fit_cost_model(path)


def test_a_tilde_in_the_path_of_a_file_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.csv").write_text(CSV)
    assert workload("~/mine.csv").requests("train", 0).digest() == read_requests_csv(tmp_path / "mine.csv").digest()
    assert TraceWorkload("~/mine.csv", num_requests=2).stretch("train")[1] == 30


def test_text_is_read_by_its_contents_under_other_endings(tmp_path):
    table, lines = tmp_path / "a.txt", tmp_path / "a.json"
    table.write_text("prompt_tokens,output_tokens\n3,5\n")
    lines.write_text('{"timestamp": 0, "input_length": 3, "output_length": 5}\n' * 2)
    assert workload(str(table)).requests("train", 0).prompt_tokens.tolist() == [3]
    assert workload(str(lines)) == TraceWorkload(lines)
    assert TraceWorkload(lines).trace().prompt_tokens.tolist() == [3, 3]
