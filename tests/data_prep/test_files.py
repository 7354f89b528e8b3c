"""Reading corpus files: every kind and compression, and every way in which a file can be wrong."""

import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep import files
from kd_megatron.errors import DataError

TEXTS = ["First document.\nIts second line.", "Zweites Dokument: ä ö ü.", "Third, the last."]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(tmp_path, texts):
    path = tmp_path / "made.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), path)
    content = path.read_bytes()
    path.unlink()
    return content


def read(path, text_key="text"):
    return [text for text, _ in files.documents(path, text_key)]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", files.KINDS)
def test_every_kind_and_compression(tmp_path, kind, compression):
    made = {".txt": TEXTS[1].encode(), ".jsonl": jsonl(TEXTS), ".parquet": parquet(tmp_path, TEXTS)}[kind]
    path = tmp_path / f"corpus{kind}{compression}"
    path.write_bytes(COMPRESS[compression](made))
    assert read(path) == ([TEXTS[1]] if kind == ".txt" else TEXTS)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_a_file_that_is_cut_short_is_an_error(tmp_path, kind, compression):
    texts = [f"{text} {index}" for index in range(3000) for text in TEXTS]
    made = jsonl(texts) if kind == ".jsonl" else parquet(tmp_path, texts)
    compressed = COMPRESS[compression](made)
    path = tmp_path / f"corpus{kind}{compression}"
    for cut in (len(compressed) - 3, len(compressed) // 2, 20):
        path.write_bytes(compressed[:cut])
        with pytest.raises(DataError, match=rf"{path.name} is damaged"):
            read(path)


def test_a_byte_order_mark_and_blank_lines_are_no_text(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(["One."]) + b"\n  \n" + jsonl(["Two."]))
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfOne.\n")
    assert read(tmp_path / "bom.jsonl") == ["One.", "Two."]
    assert read(tmp_path / "bom.txt") == ["One.\n"]


def test_a_long_text_is_cut_at_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TEXT_CUT_CHARACTERS", 50)
    monkeypatch.setattr(files, "_PIECE_BYTES", 30)
    paragraphs = [f"Paragraph {index}: " + "the sea is wide. " * 5 for index in range(6)]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs) + "\n" + "x" * 500 + "é" * 300)
    documents = read(tmp_path / "long.txt")
    assert "".join(documents) == (tmp_path / "long.txt").read_text()
    assert len(documents) > 6
    assert max(map(len, documents)) <= 2 * 50 + 30
    assert documents[0].endswith("\n")


def test_one_long_line_is_cut_between_words(tmp_path):
    text = "the sea is wide and the boats are small " * 40_000  # 1.6 million characters, as corpora of one line have
    (tmp_path / "line.txt").write_text(text)
    documents = read(tmp_path / "line.txt")
    assert "".join(documents) == text
    assert len(documents) == 4
    assert max(map(len, documents)) <= 2 * files.TEXT_CUT_CHARACTERS + (1 << 16)
    assert all(document.endswith(" ") for document in documents)


WRONG = {
    "digits.jsonl": (b'{"text": "a"}\n{"id": ' + b"7" * 5000 + b"}\n", "line 2: not JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1: not JSON"),
    "binary.txt": (b"text\nmore\0text\n", "line 2: binary"),
    "latin.txt": ("gut\nschön\n".encode("latin1"), "line 2: not UTF-8"),
    "half.txt": ("schön".encode()[:4], "line 1: not UTF-8"),
    "utf16.jsonl": ('{"text": "x"}\n'.encode("utf-16"), "line 1: binary"),
    "latin.jsonl": (jsonl(["a"]) + '{"text": "schön"}\n'.encode("latin1"), "line 2: not UTF-8"),
    "torn.jsonl": (jsonl(["a", "b"])[:-8], "line 2: not JSON"),
    "key.jsonl": (jsonl(["a"]) + b'{"txt": "b"}\n', "line 2: no field 'text'; did you mean 'txt'"),
    "list.jsonl": (b'["a"]\n', "line 1: a list"),
    "null.jsonl": (jsonl(["a"]) + b'{"text": null}\n', "line 2: 'text' is NoneType"),
    "number.jsonl": (b'{"text": 1}\n', "line 1: 'text' is int"),
    "blank.jsonl": (b"\n\n", "is empty"),
    "blank.txt": (b" \n\n", "is empty"),
    "no.parquet": (b"PAR1 but not really", "is damaged"),
    "no.txt.gz": (b"not gzip", "is damaged"),
    "no.txt.xz": (b"not xz at all", "is damaged"),
    "no.txt.zst": (b"not zst at all", "is damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_names_file_and_line(tmp_path, name):
    content, message = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


def test_parquet_without_the_column_names_the_nearest(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(tmp_path, TEXTS))
    with pytest.raises(DataError, match="did you mean 'text'"):
        read(tmp_path / "a.parquet", "texts")


def test_expand_finds_files_directories_and_globs_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.jsonl.xz", "README.md", "sub/c.parquet"):
        (tmp_path / name).write_bytes(b"x")
    found = files.expand([str(tmp_path / "b.txt"), str(tmp_path), str(tmp_path / "*.txt")])
    assert [path.name for path in found] == ["b.txt", "a.jsonl.xz", "c.parquet"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", "does not exist"),
        ("absent-*.jsonl", "does not exist"),
        ("directory", "holds no corpus file"),
        ("notes.pdf", "unknown kind"),
        ("noext", "unknown kind"),
        ("empty.txt", "is empty"),
    ],
)
def test_wrong_paths(tmp_path, name, message):
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "notes.pdf").write_bytes(b"x")
    (tmp_path / "notes.pdf").write_bytes(b"x")
    (tmp_path / "noext").write_bytes(b"x")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=message) as caught:
        files.expand([str(tmp_path / name)])
    assert name in str(caught.value)
