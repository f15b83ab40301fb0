"""Files made to harm whoever reads them: code in pickles, small files that unpack to much, parts that do not fit."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from benchmarks.harness.datasets import load, safe_npz
from benchmarks.harness.datasets.safe_pickle import read_pickle
from benchmarks.harness.errors import BenchmarkError
from tests.benchmarks.test_datasets import write_planetoid
from tests.benchmarks.test_npz import Hostile, boxed, graph, plain  # noqa: F401  (graph is a fixture)

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph")


@pytest.fixture
def cora(tmp_path: Path) -> Path:
    write_planetoid(tmp_path / "Cora" / "raw")
    return tmp_path


def raw(root: Path, part: str) -> Path:
    return root / "Cora" / "raw" / f"ind.cora.{part}"


@pytest.mark.parametrize("part", [part for part in PARTS if part != "x"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_planetoid_file_is_not_run(cora: Path, part: str, protocol: int):
    trap = cora / "trap"
    raw(cora, part).write_bytes(pickle.dumps(Hostile(trap), protocol=protocol))
    with pytest.raises(BenchmarkError, match=rf"'ind.cora.{part}' must hold only NumPy arrays .*mkdir"):
        load("planetoid:cora", cora)
    assert not trap.exists()


def test_the_processed_file_beside_them_is_not_read(cora: Path):
    """PyG would unpickle it without restriction where its name of a class is not a known one."""
    trap, processed = cora / "trap", cora / "Cora" / "processed"
    processed.mkdir()
    for name in ("data.pt", "pre_transform.pt", "pre_filter.pt"):
        torch.save(Hostile(trap), processed / name)
    assert load("planetoid:cora", cora).num_nodes == 1700
    assert not trap.exists()


def test_planetoid_is_read_as_pyg_reads_it(cora: Path):
    """Also where test nodes come in another order and leave gaps, as CiteSeer's do."""
    from torch_geometric.io import read_planetoid_data

    rng = np.random.default_rng(1)
    order = rng.permutation([700, 1709, *rng.permutation(np.arange(701, 1709))[:998]])
    raw(cora, "test.index").write_text("".join(f"{node}\n" for node in order))
    raw(cora, "graph").write_bytes(pickle.dumps(defaultdict(list, {3: [5, 5, 3], 900: [1, 1709]}), protocol=2))
    (cora / "CiteSeer" / "raw").mkdir(parents=True)
    for part in (*PARTS, "test.index"):
        (cora / "CiteSeer" / "raw" / f"ind.citeseer.{part}").write_bytes(raw(cora, part).read_bytes())
    own, other = load("planetoid:citeseer", cora), read_planetoid_data(str(cora / "CiteSeer" / "raw"), "citeseer")
    assert torch.equal(own.x, other.x) and torch.equal(own.y, other.y) and own.num_edges == 3
    for part, mask in (("train", other.train_mask), ("valid", other.val_mask), ("test", other.test_mask)):
        assert torch.equal(getattr(own.split, part), mask.nonzero().view(-1))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("allx", [1, 2], "'allx' must be one CSR matrix"),
        ("allx", np.zeros((700, 4)), "'allx' must be one CSR matrix"),
        ("ally", np.array(["a"]), "'ally' must be a matrix of numbers"),
        ("ally", np.zeros((3, 0)), "'ally' must be a matrix of numbers"),
        ("ty", np.zeros((3, 3)), "features and classes must be of the same nodes"),
        ("y", np.zeros((699, 3)), "leave 500 of them for validation"),
        ("tx", sp.csr_matrix(np.eye(1000, 9)), "must have the others' features"),
        ("graph", [1], "'graph' must be a dictionary of lists"),
        ("graph", {0: 7}, "'graph' must be a dictionary of lists"),
        ("graph", {0: [10**12]}, r"'graph' must name nodes in \[0, 1700\) \(got \(0, 10{12}\)\)"),
        ("graph", {"a": [1]}, r"'graph' must name nodes in"),
        ("graph", {0: [True]}, r"'graph' must name nodes in"),
    ],
)
def test_planetoid_parts_that_do_not_fit(cora: Path, part, value, message):
    raw(cora, part).write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(BenchmarkError, match=message):
        load("planetoid:cora", cora)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one node number a line"),
        ("-1\n", "one node number a line"),
        ("7\n1e3\n", "one node number a line"),
        ("9" * 5000, "one node number a line"),
        ("\u0663\n", "one node number a line"),
        ("0\n" * 1000, "must follow the 700 others, once each"),
        ("\n".join(map(str, range(701, 1701))), "must follow the 700 others, once each"),
        ("\n".join(map(str, [*range(700, 1699), 999999999])), "number few gaps"),
    ],
)
def test_planetoid_test_nodes_that_do_not_fit(cora: Path, text, message):
    raw(cora, "test.index").write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        load("planetoid:cora", cora)


class Calls:
    """Is rebuilt by a call of what it was given."""

    def __init__(self, function, *arguments) -> None:
        self.made_by = function, arguments

    def __reduce__(self):
        return self.made_by


@pytest.mark.parametrize(
    "value",
    [
        Calls(np.ndarray, (2**40,)),  # memory that nobody filled
        Calls(eval, "1"),
        Calls(print, "x"),
        Calls(np.load, "x"),
        Calls(bytearray, 2**40),
        Calls(os.system, "true"),
        Calls(getattr, 1, "real"),
        Calls(__import__, "os"),
        np.matrix([1.0]),
        np.ma.array([1.0]),
        sp.coo_matrix(np.eye(2)),
        np.float64(1.0),
        {1, 2},
        Path("/"),
    ],
    ids=lambda value: value.made_by[0].__name__ if isinstance(value, Calls) else type(value).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_what_else_a_pickle_may_ask_for(value, protocol):
    if isinstance(value, set) and protocol > 2:
        return  # it has an opcode of its own then
    with pytest.raises(ValueError, match="'part' must hold only NumPy arrays and CSR matrices"):
        read_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)), "part")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\xff.",
        b"no pickle",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",  # bytes of 2^62
        b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b".",  # a bytearray of 2^40
        b"(" * 100_000,
        b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",  # deep nesting
        b"cnumpy\nndarray\n(I1099511627776\ntR.",
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00hex_ctR.",
    ],
    ids=range(10),
)
def test_damaged_pickles(data):
    try:
        found = read_pickle(io.BytesIO(data), "part")
    except ValueError as error:
        assert "'part' must hold only NumPy arrays and CSR matrices" in str(error)
    else:
        assert type(found) is list  # nothing but nested lists


def npy(shape: str, descr: str = "'<f8'", payload: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


@pytest.mark.parametrize(
    "entry",
    [
        npy("(1000000000000,)"),
        npy("(99999999999999999999999,)"),
        npy("(1048576, 1048576, 1048576)"),
        npy("(-1,)", payload=bytes(8)),
        npy("(-1, -8)", payload=bytes(64)),
        npy("(20,)", payload=bytes(8)),
        npy("(1,)", payload=bytes(16)),
        npy("(True,)", payload=bytes(8)),
        npy("20"),
        npy("(0,)", "'V1000000000'"),
        npy("__import__('os').mkdir('trap')"),
        npy("(2,)", "'|O'", b"cos\nmkdir\n(S'trap'\ntR."),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 9000,
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY",
        b"",
    ],
    ids=range(16),
)
def test_npy_headers_that_lie(tmp_path: Path, graph, entry, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    arrays = {name: value for name, value in plain(*graph).items() if name != "labels"}
    np.savez(tmp_path / "g.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "g.npz", "a") as archive:
        archive.writestr("labels.npy", entry)
    with pytest.raises(BenchmarkError):
        load("npz:g.npz", ".")
    assert not (tmp_path / "trap").exists()


def test_a_small_file_that_unpacks_to_much(tmp_path: Path, graph, monkeypatch):  # noqa: F811
    monkeypatch.setattr(safe_npz, "MAX_BYTES", 2**20)
    arrays = {name: value for name, value in plain(*graph).items() if name != "labels"}
    np.savez(tmp_path / "g.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "g.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", npy("(2000000,)", "'|i1'", bytes(2_000_000)))
    assert (tmp_path / "g.npz").stat().st_size < 20_000
    with pytest.raises(BenchmarkError, match=r"'labels' must take at most 1048576 bytes \(got 20000"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


def test_a_directory_that_understates_an_entry(tmp_path: Path, graph):  # noqa: F811
    """What is read ends where the directory says; the header then promises more than there is."""
    np.savez_compressed(tmp_path / "g.npz", **plain(*graph))
    data = bytearray((tmp_path / "g.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "g.npz") as archive:
        size = archive.getinfo("labels.npy").file_size
    at = data.rindex(b"labels.npy") - 46 + 24  # the size in the central directory
    assert struct.unpack_from("<I", data, at)[0] == size
    struct.pack_into("<I", data, at, size - 8)
    (tmp_path / "g.npz").write_bytes(data)
    with pytest.raises(BenchmarkError, match=r"promises|not a readable"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


def test_few_numbers_that_make_a_huge_dense_matrix(tmp_path: Path, graph):  # noqa: F811
    np.savez(tmp_path / "g.npz", **plain(*graph) | {"attr_shape": np.array([20, 2**50])})
    with pytest.raises(BenchmarkError, match=r"features as a dense fp32 matrix of shape .* must take at most"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")
    boxes = {"adj_matrix": boxed(graph[0]), "node_label": graph[2]}
    wide = graph[1].copy()
    wide._shape = (20, 2**50)
    np.savez(tmp_path / "g.npz", node_attr=boxed(wide), **boxes)
    with pytest.raises(BenchmarkError, match=r"features as a dense fp32 matrix of shape .* must take at most"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


@pytest.mark.parametrize("shape", [None, "20", (20,), (20, -1), (20, 2.5), ("a", "b"), 7])
def test_boxed_shapes_that_are_none(tmp_path: Path, graph, shape):  # noqa: F811
    broken = graph[0].copy()
    broken._shape = shape
    np.savez(tmp_path / "g.npz", adj_matrix=boxed(broken), node_attr=boxed(graph[1]), node_label=graph[2])
    with pytest.raises(BenchmarkError, match="'adj_matrix' must have two sizes"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


def test_members_with_paths_are_never_unpacked_to_disk(tmp_path: Path, graph):  # noqa: F811
    np.savez(tmp_path / "g.npz", **plain(*graph))
    with zipfile.ZipFile(tmp_path / "g.npz", "a") as archive:
        for name in ("../outside.npy", "/tmp/../outside.npy", "..\\outside.npy"):
            archive.writestr(name, b"x")
        link = zipfile.ZipInfo("link.npy")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    assert load(f"npz:{tmp_path / 'g.npz'}", ".").num_nodes == 20
    assert [path.name for path in tmp_path.iterdir()] == ["g.npz"]
    assert before == sorted(path.name for path in tmp_path.parent.iterdir())


@pytest.mark.parametrize("name", ["a b.npz", "ü雪.npz", "a;touch x.npz", "%s{}.npz", "-rf.npz", "a\nb.npz", "'\".npz"])
def test_paths_of_odd_characters(tmp_path: Path, graph, name):  # noqa: F811
    np.savez(tmp_path / "g.npz", **plain(*graph))
    (tmp_path / "g.npz").rename(tmp_path / name)
    assert load(f"npz:{tmp_path / name}", ".").title == Path(name).stem


@pytest.mark.parametrize(
    "path", [".", "..", "\0", "a\0b", "/dev/null", "~nobody-of-this-name/x", pytest.param("a" * 5000, id="long")]
)
def test_paths_of_no_file(path):
    with pytest.raises(BenchmarkError, match="is not a file"):
        load(f"npz:{path}", ".")


@pytest.mark.parametrize("place", ["processed/geometric_data_processed.pt", "split/time/split_dict.pt"])
def test_files_that_ogb_unpickles_run_nothing(ogb_root: Path, tmp_path: Path, place):
    """ogb 1.3.6 reads both with ``torch.load``, which takes weights and the few classes that are named."""
    trap, path = tmp_path / "trap", ogb_root / "ogbn_arxiv" / place
    load("ogbn-arxiv", ogb_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(Hostile(trap), path)
    with pytest.raises(BenchmarkError, match="could not be read"):
        load("ogbn-arxiv", ogb_root)
    assert not trap.exists()
