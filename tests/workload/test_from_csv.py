"""The user's own file: what is read, and what every complaint says."""

from __future__ import annotations

import os
import pickle
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsched_env.errors import ConfigError, FileFormatError, PathError, UnknownNameError
from llmsched_env.workload import CsvWorkload, from_csv, read_requests_csv, workload
from llmsched_env.workload.csv_table import read_table

HEAD = "prompt_tokens,output_tokens\n"
NO_RESET = settings(max_examples=50, deadline=None, suppress_health_check=[*HealthCheck])


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_two_columns(tmp_path):
    got = read_requests_csv(write(tmp_path, HEAD + "3,5\n4,7\n"))
    assert (got.prompt_tokens.tolist(), got.output_tokens.tolist()) == ([3, 4], [5, 7])
    assert got.release_ns.tolist() == [0, 0]
    assert got.predicted_tokens is None
    assert got.mean_output_tokens == 6.0


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "3,5\n4,7",
        "\ufeff" + HEAD + "3,5\n4,7\n",
        HEAD.replace("\n", "\r\n") + "3,5\r\n4,7\r\n",
        HEAD.replace("\n", "\r") + "3,5\r4,7\r",
        "\n\n" + HEAD + "\n3,5\n\n4,7\n\n\n",
        '"prompt_tokens","output_tokens"\n"3","5"\n"4","7"\n',
        " prompt_tokens , output_tokens \n 3 , 5 \n\t4,7\n",
        "output_tokens,prompt_tokens\n5,3\n7,4\n",
        "who,prompt_tokens,output_tokens,note\nann,3,5,\"a, b\"\nbob,4,7,\n",
        'note,prompt_tokens,output_tokens\n"two\nlines",3,5\n,4,7\n',
        HEAD + "3.0,5\n4,7.00\n",
        HEAD + "+3,05\n4e0,7\n",
    ],
    ids=["no last newline", "BOM", "CRLF", "CR", "blank lines", "quoted", "blanks", "order", "more columns",
         "cell of two lines", "whole decimals", "odd integers"],
)  # fmt: skip
def test_ways_to_write_the_same(tmp_path, text):
    got = read_requests_csv(write(tmp_path, text))
    assert (got.prompt_tokens.tolist(), got.output_tokens.tolist()) == ([3, 4], [5, 7])


def test_arrivals_are_exact(tmp_path):
    # 4503599.627370497 s is not a double at the nanosecond, and 0.5 ns rounds to even.
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
        f"{cell},1,1\n" for cell in ("0", "0.0000000005", "0.0000000015", "1e-3", ".25", "4503599.627370497")
    )
    got = read_requests_csv(write(tmp_path, text))
    assert got.release_ns.tolist() == [0, 0, 2, 10**6, 25 * 10**7, 4503599627370497]


def test_predictions(tmp_path):
    got = read_requests_csv(write(tmp_path, "prompt_tokens,output_tokens,predicted_tokens\n3,5,6\n4,7,1\n"))
    assert got.predicted_tokens is not None
    assert got.predicted_tokens.tolist() == [6, 1]


ROWS = st.lists(
    st.tuples(
        st.integers(1, 2**24),
        st.integers(1, 2**24),
        st.decimals(0, 10**9, places=9, allow_nan=False),
        st.integers(1, 2**24),
    ),
    min_size=1,
    max_size=20,
)


@given(rows=ROWS, chunk_rows=st.integers(1, 8))
@pytest.mark.filterwarnings("ignore::llmsched_env.units.UnitWarning")  # years between requests are drawn, too
@NO_RESET
def test_round_trip_by_the_fast_and_by_the_careful_pass(tmp_path, rows, chunk_rows):
    rows = [(p, o, a, e) for (p, o, _, e), a in zip(rows, sorted(row[2] for row in rows), strict=True)]
    lines = [f"{a},{p},{o},{e}" for p, o, a, e in rows]
    path = write(tmp_path, "\n".join(["arrival_s,prompt_tokens,output_tokens,predicted_tokens", *lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_csv, "CHUNK_ROWS", chunk_rows)
        got = read_requests_csv(path)
    columns = (got.prompt_tokens, got.output_tokens, got.release_ns, got.predicted_tokens)
    times = [int(a * 10**9) for _, _, a, _ in rows]
    expected = [[p for p, *_ in rows], [o for _, o, *_ in rows], [time - times[0] for time in times]]
    assert [column.tolist() for column in columns] == [*expected, [e for *_, e in rows]]
    careful = from_csv._read_carefully(
        read_table(path, required=from_csv.TOKENS[:2], optional=("arrival_s", "predicted_tokens"))
    )
    assert careful["arrival_s"].tolist() == times


CELLS = st.one_of(
    st.sampled_from(
        ["1", "2.0", "0", "-1", "nan", "inf", "1_0", "１", "", " ", "1e3", "1e999", "2.5", "16777217", "x"]
    ),
    st.text(alphabet="0123456789.eE+-_ ", max_size=6),
)


@given(cells=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
@NO_RESET
def test_fast_pass_never_accepts_what_the_careful_one_refuses(tmp_path, cells):
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a},{p},1\n" for a, p in cells)
    table = read_table(write(tmp_path, text), required=from_csv.TOKENS[:2], optional=("arrival_s",))
    fast = from_csv._read_fast(table)
    try:
        careful = from_csv._read_carefully(table)
    except FileFormatError:
        assert fast is None
    else:
        for name, values in careful.items():
            assert fast is None or fast[name].tolist() == values.tolist()


A = "arrival_s," + HEAD


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, None, "is empty: start it with a header that names the columns prompt_tokens, output_tokens"),
        ("\ufeff\n\n", 1, None, "is empty"),
        (HEAD, 1, None, "has a header but no rows"),
        (HEAD + "\n\n", 1, None, "has a header but no rows"),
        ("prompt_tokens\n3\n", 1, "output_tokens", "is missing: the header has 'prompt_tokens'. Columns needed"),
        ("prompt_tokens,outputtokens\n3,5\n", 1, "output_tokens", "but there is 'outputtokens'. Did you mean that?"),
        ("prompt_tokens;output_tokens\n3;5\n", 1, "prompt_tokens", "separated by semicolons. Separate cells by commas"),
        ("prompt_tokens\toutput_tokens\n3\t5\n", 1, "prompt_tokens", "separated by tabs"),
        ("3,5\n4,7\n", 1, "prompt_tokens", "is missing: the header has '3', '5'"),
        ("prompt_tokens,output_tokens,prompt_tokens\n1,2,3\n", 1, "prompt_tokens", "appears more than once"),
        ("arrivals_s," + HEAD + "0,3,5\n", 1, "arrivals_s", "is not a known column. Did you mean 'arrival_s'?"),
        ("predicted_token," + HEAD + "1,3,5\n", 1, "predicted_token", "Did you mean 'predicted_tokens'?"),
        (HEAD + "3,5\n4\n", 3, None, "has 1 cells but the header names 2 columns"),
        (HEAD + "3,5,6\n", 2, None, "has 3 cells but the header names 2 columns"),
        (HEAD + "3,5\n\n\n4,7,\n", 5, None, "has 3 cells"),
        (HEAD + "3,five\n", 2, "output_tokens", "'five' is not a finite number: write a whole number in [1, 16777216]"),
        (HEAD + "3,5\n3.5,5\n", 3, "prompt_tokens", "'3.5' is not whole"),
        (HEAD + "nan,5\n", 2, "prompt_tokens", "'nan' is not a finite number"),
        (HEAD + "3,sNaN\n", 2, "output_tokens", "'sNaN' is not a finite number"),
        (HEAD + "3,inf\n", 2, "output_tokens", "'inf' is not a finite number"),
        (HEAD + "0,5\n", 2, "prompt_tokens", "'0' is out of range: write a whole number in [1, 16777216]"),
        (HEAD + "3,-5\n", 2, "output_tokens", "'-5' is out of range"),
        (HEAD + "3,1e999999\n", 2, "output_tokens", "'1e999999' is out of range"),
        (HEAD + "3,1e9999999\n", 2, "output_tokens", "is not a finite number"),
        (HEAD + "3," + "9" * 5000 + "\n", 2, "output_tokens", "9...' is out of range"),
        (HEAD + "3,1_000\n", 2, "output_tokens", "'1_000' is not a finite number"),
        (HEAD + "3,١\n", 2, "output_tokens", "is not a finite number"),
        (HEAD + ",5\n", 2, "prompt_tokens", "is blank: write a whole number"),
        ("predicted_tokens," + HEAD + "0,3,5\n", 2, "predicted_tokens", "'0' is out of range"),
        (
            A + "0,1,1\n-1,1,1\n",
            3,
            "arrival_s",
            "'-1' is out of range: write seconds of any clock, from 0",
        ),
        (A + "nan,1,1\n", 2, "arrival_s", "'nan' is not a finite number"),
        (A + "1700000000000,1,1\n", 2, "arrival_s", "'1700000000000' is out of range"),
        (A + "2.5,1,1\n2.25,1,1\n", 3, "arrival_s", "2.25 is earlier than the row before: sort by arrival"),
        (A + "12:30,1,1\n", 2, "arrival_s", "'12:30' is not a finite number"),
        (HEAD + '3,"5\n4,7\n', 3, None, "cannot be split into cells (unexpected end of data): close or remove"),
        ('"prompt_tokens,output_tokens\n', 1, None, "cannot be split into cells"),
        (HEAD + '3,"5"6\n', 2, None, "cannot be split into cells"),
        (HEAD.encode() + b"3,5\n4,\xff\n", 3, None, "byte 0xff is not UTF-8: save the file as CSV UTF-8"),
        (HEAD + "3,5\n4,7\0\n", 3, None, "has a null character"),
    ],
)
def test_errors_name_line_column_and_remedy(tmp_path, text, line, column, words):
    path = write(tmp_path, text)
    with pytest.raises(FileFormatError) as caught:
        read_requests_csv(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path))
    assert (caught.value.line, caught.value.column) == (line, column)
    assert f", line {line}" in message
    assert len(message) < 400 + len(str(path))


def test_the_first_error_in_the_file_is_reported(tmp_path):
    with pytest.raises(FileFormatError, match="line 3, column 'output_tokens'"):
        read_requests_csv(write(tmp_path, HEAD + "3,5\n4,x\n0,0\n1\n"))


def test_paths_that_cannot_be_read(tmp_path):
    for path, words in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "a\0b.csv", "null"),
    ):
        with pytest.raises(PathError, match=rf"cannot read .*{words}.*Give the path of a readable CSV file"):
            read_requests_csv(path)
    for path in (tmp_path / "none.csv", tmp_path / "a\0b.csv"):
        with pytest.raises(PathError, match="cannot read"):
            workload(path).requests("test", 0)


def test_a_file_without_permission(tmp_path):
    secret = write(tmp_path, HEAD + "3,5\n")
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(PathError, match="Permission denied"):
        read_requests_csv(secret)


def test_case_0_is_the_file_as_it_stands_in_every_split(tmp_path):
    item = CsvWorkload(write(tmp_path, HEAD + "".join(f"{i},{i + 1}\n" for i in range(1, 101))))
    assert (item.name, item.num_requests, item.pool_size("train")) == ("mine", 100, 1)
    case = item.requests("train", 0)
    assert case.prompt_tokens.tolist() == list(range(1, 101))
    assert item.requests("test", 0).digest() == case.digest()
    assert item.requests("test", 0, num_requests=100).digest() == case.digest()
    assert pickle.loads(pickle.dumps(item)) == item == workload(item.path) == workload(str(item.path))
    with pytest.raises(UnknownNameError, match="unknown split 'all'"):
        item.pool_size("all")


def test_later_cases_are_other_orders_with_the_arrivals_in_place(tmp_path):
    text = A.replace("\n", ",predicted_tokens\n") + "".join(f"{i}.5,{i + 1},{i + 2},{i + 3}\n" for i in range(100))
    item = CsvWorkload(write(tmp_path, text))
    file, other = item.requests("test", 0), item.requests("test", 1)
    assert other.release_ns.tolist() == file.release_ns.tolist()
    assert other.prompt_tokens.tolist() != file.prompt_tokens.tolist()
    assert sorted(other.prompt_tokens.tolist()) == file.prompt_tokens.tolist()
    assert other.predicted_tokens is not None
    np.testing.assert_array_equal(other.output_tokens, other.prompt_tokens + 1)
    np.testing.assert_array_equal(other.predicted_tokens, other.prompt_tokens + 2)
    assert item.requests("train", 1).digest() == other.digest()
    assert item.requests("test", 2).digest() != other.digest()
    assert file.release_ns[0] == 0
    with pytest.raises(ConfigError, match=r"num_requests = 50 but .* has 100 requests with arrival times"):
        item.requests("test", 0, num_requests=50)


def test_scaled_case_draws_rows_of_the_file(tmp_path):
    item = CsvWorkload(write(tmp_path, HEAD + "".join(f"{i},{i + 1}\n" for i in range(1, 11))))
    case = item.requests("test", 0, num_requests=1000)
    assert len(case) == 1000
    assert set(case.prompt_tokens.tolist()) == set(range(1, 11))
    np.testing.assert_array_equal(case.output_tokens, case.prompt_tokens + 1)
    assert case.mean_output_tokens == item.requests("test", 0).mean_output_tokens == 6.5


def test_a_changed_file_is_read_again(tmp_path):
    item = CsvWorkload(write(tmp_path, HEAD + "3,5\n"))
    assert item.num_requests == 1
    assert item.requests("test", 0) is item.requests("test", 0)
    write(tmp_path, HEAD + "3,5\n4,7\n")
    assert item.num_requests == 2


def test_a_path_is_asked_for():
    with pytest.raises(ConfigError, match=r"path = 3 is not a path: pass a str or a Path"):
        CsvWorkload(3)
    assert CsvWorkload("a.csv").path == Path("a.csv")


def test_decimal_context_of_the_user_does_not_matter(tmp_path):
    import decimal

    path = write(tmp_path, A + "0,1,1\n1234567.123456789,1,1\n")
    with decimal.localcontext() as context:
        context.prec = 5
        assert read_requests_csv(path).release_ns.tolist() == [0, 1234567123456789]
    assert int(Decimal("1234567.123456789") * 10**9) == 1234567123456789
