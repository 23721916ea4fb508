"""The header reader: every rule of the format, and no exception but our own on any bytes."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from offprincipal.checkpoint import DTYPES, open_checkpoint
from offprincipal.checkpoint._header import LARGEST_HEADER, parse_header, parse_json
from offprincipal.checkpoint._listing import parse_config, parse_index
from offprincipal.errors import InputError, OffprincipalError


def write(path: Path, header: object, payload: bytes = b"", length: int | None = None) -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(data) if length is None else length).to_bytes(8, "little") + data + payload)
    return path


def entry(shape: object = (2,), dtype: object = "F32", offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TWICE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
BAD = {
    "truncated": ({"a": entry()}, b"1234", None, "ends at byte"),
    "length beyond file": ({"a": entry()}, bytes(8), 10**12, "announces a header of 1,000,000,000,000 bytes"),
    "not json": (b"{nonsense}", bytes(8), None, "is not valid JSON"),
    "not utf-8": (b"\xff\xfe", b"", None, "is not valid JSON"),
    "deep": (b"[" * 100_000, b"", None, "nested too deeply"),
    "endless number": (b'{"a":' + b"9" * 5000 + b"}", b"", None, "is not valid JSON"),
    "not an object": ([1], b"", None, "is not a JSON object"),
    "no fields": ({"a": {}}, b"", None, "has no dtype, shape and data_offsets"),
    "not a record": ({"a": 3}, b"", None, "has no dtype, shape and data_offsets"),
    "duplicate": (TWICE, bytes(8), None, "the key 'a' stands twice"),
    "unknown dtype": ({"a": entry(dtype="F4")}, bytes(8), None, "unknown dtype 'F4'"),
    "dtype not text": ({"a": entry(dtype=["F32"])}, bytes(8), None, "unknown dtype"),
    "negative shape": ({"a": entry(shape=[-2])}, bytes(8), None, "impossible shape"),
    "true is no size": ({"a": entry(shape=[True, 2])}, bytes(8), None, "impossible shape"),
    "fraction": ({"a": entry(shape=[2.0])}, bytes(8), None, "impossible shape"),
    "too many axes": ({"a": entry(shape=[1] * 65 + [2])}, bytes(8), None, "impossible shape"),
    "huge beside zero": ({"a": entry(shape=[0, 2**40, 2**40], offsets=[0, 0])}, b"", None, "impossible shape"),
    "backward": ({"a": entry(offsets=[8, 0])}, bytes(8), None, "impossible data_offsets"),
    "three offsets": ({"a": entry(offsets=[0, 4, 8])}, bytes(8), None, "impossible data_offsets"),
    "out of range": ({"a": entry(offsets=[8, 16])}, bytes(8), None, "ends at byte"),
    "mismatched": ({"a": entry(shape=[3])}, bytes(8), None, "spans 8 bytes where its shape and dtype need 12"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), None, "overlaps the tensor before it"),
    "same bytes": ({"a": entry(), "b": entry()}, bytes(8), None, "overlaps the tensor before it"),
    "hole": ({"a": entry(offsets=[4, 12])}, bytes(12), None, "leaves a hole before it"),
    "hidden tail": ({"a": entry()}, bytes(11), None, "3 bytes that belong to no tensor"),
    "name not text": (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b"", None, "not Unicode text"),
    "no tensor": ({"__metadata__": {"format": "pt"}}, b"", None, "the files hold no tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, case: str) -> None:
    header, payload, length, message = BAD[case]
    path = write(tmp_path / "model.safetensors", header, payload, length)
    for ref in (tmp_path, path):
        with pytest.raises(InputError, match=r"^cannot open checkpoint .*" + message):
            open_checkpoint(ref)


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_shorter_than_its_length_field(tmp_path: Path, size: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    with pytest.raises(InputError, match=f"has {size} bytes, too few for a header"):
        open_checkpoint(tmp_path)


def test_a_header_above_the_limit_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER + 100)  # sparse: no such space is taken
    with pytest.raises(InputError, match="above the format's limit"):
        open_checkpoint(path)


def test_every_cut_of_a_good_file_is_noticed(tmp_path: Path) -> None:
    good = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})
    path = tmp_path / "model.safetensors"
    for stop in range(len(good)):
        path.write_bytes(good[:stop])
        with pytest.raises(InputError):
            open_checkpoint(path)
    path.write_bytes(good)
    assert set(open_checkpoint(path).tensors) == {"a", "b"}


@given(st.data())
def test_one_flipped_byte_never_escapes_our_errors(data: st.DataObject) -> None:
    good = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})
    length = int.from_bytes(good[:8], "little")
    header = bytearray(good[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 3))):
        header[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_header(bytes(header), len(good), "open", "m", "/m")
    except OffprincipalError:
        return
    assert sum(info.nbytes for info in found.values()) == len(good) - 8 - length


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
NUMBERS = st.lists(st.integers(-2, 20) | st.integers(), max_size=3)
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPES, "F4"]) | JSON, "shape": NUMBERS | JSON, "data_offsets": NUMBERS | JSON}
)


@given(st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=3), st.integers(0, 200))
def test_arbitrary_headers_are_read_or_refused(header: dict[str, object], payload: int) -> None:
    data = json.dumps(header).encode()
    try:
        found = parse_header(data, 8 + len(data) + payload, "open", "m", "/m")
    except OffprincipalError:
        return
    assert sum(info.nbytes for info in found.values()) == payload


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (parse_index, parse_config, lambda data, asked: parse_header(data, 10_000, asked, "m", "/m")):
        try:
            read(data, "open")
        except OffprincipalError:
            continue


def test_parse_json_keeps_what_is_sound() -> None:
    assert parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_every_float_type_is_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file(
        {"w": weight, "scalar": torch.tensor(2.5).to(dtype), "none": torch.empty(0, 3, dtype=dtype)},
        tmp_path / "m.safetensors",
    )
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert checkpoint.tensors["w"].is_float
    read = checkpoint.read("w")
    assert read.dtype == dtype
    assert torch.equal(read.view(torch.uint8), weight.view(torch.uint8))
    assert checkpoint.read("scalar").shape == ()
    assert checkpoint.read("scalar").float() == 2.5
    assert checkpoint.read("none").shape == (0, 3)
