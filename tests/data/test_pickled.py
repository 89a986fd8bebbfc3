import collections
import os
import pickle

import numpy as np
import pytest
import scipy.sparse

from alignment.errors import InputError
from data.pickled import read_pickle

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture
def read(tmp_path):
    def read(data, **limits):
        (tmp_path / "some.pickle").write_bytes(data)
        return read_pickle(tmp_path / "some.pickle", **limits)

    return read


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


VALUES = [
    [0, 1, 255, 256, -1, 2**31, -(2**80), 1.5, True, False, None],
    {"a": [1, (2,), (3, 4), (5, 6, 7), (), (1, 2, 3, 4)], ("r", 2): {}, 3: "ü", b"k": b"\xff" * 300},
    {"set": {1, 2, "c"}, "frozen": frozenset({3}), "empty": set(), "no bytes": b"", "long": "x" * 70_000},
    collections.defaultdict(list, {0: [1, 2], 7: []}),
    [["shared"]] * 3,
    [],
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES)
def test_plain_values_come_back_equal_and_of_their_types(read, value, protocol):
    back = read(pickle.dumps(value, protocol))
    assert back == value and type(back) is type(value) and repr(back) == repr(value)


@pytest.mark.parametrize("protocol", [0, 1])
def test_the_text_protocols_are_read_too(read, protocol):
    assert read(pickle.dumps([1, "a", 2.5, {3: None}, True, (4,)], protocol)) == [1, "a", 2.5, {3: None}, True, (4,)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="<i8").reshape(3, 4),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.array([1, 256], dtype=">u4"),
        np.array([[True], [False]]),
        np.array(["a", "bcd"]),
        np.array(3.5),
        np.zeros((0, 5)),
        np.arange(10)[::3],
    ],
)
def test_arrays_come_back_with_shape_dtype_and_values(read, array, protocol):
    first, second, scalar = read(pickle.dumps((array, array, array.reshape(-1)[:1].tolist()), protocol))
    np.testing.assert_array_equal(first, array)
    assert first is second and first.shape == array.shape and first.dtype == array.dtype.newbyteorder("=")
    assert first.flags.writeable and isinstance(scalar, list)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_and_csr_matrices_come_back(read, protocol):
    matrix = scipy.sparse.random_array((7, 5), density=0.4, rng=np.random.default_rng(0)).tocsr()
    matrix = scipy.sparse.csr_matrix(matrix)
    scalar, back = read(pickle.dumps([np.float32(1.5), matrix], protocol))
    assert scalar == 1.5 and scalar.dtype == np.float32
    assert isinstance(back, scipy.sparse.csr_matrix)
    np.testing.assert_array_equal(back.toarray(), matrix.toarray())


def test_partitions_of_places_come_back(read):
    """What Meta-Ref's ancestor published: a dict of (rows, columns) to lists of index arrays."""
    partitions = {(r, c): [np.arange(r + k) for k in range(r * c)] for r in (1, 2) for c in (2, 3)}
    back = read(pickle.dumps(partitions, 4))
    assert list(back) == list(partitions)
    for key, arrays in partitions.items():
        assert all(np.array_equal(a, b) for a, b in zip(back[key], arrays, strict=True))


PYTHON2 = (  # an array as numpy of Python 2 wrote it: text stands for bytes
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02\x85"
    b"cnumpy\ndtype\nq\x04U\x02i4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    b"U\x08\x01\x00\x00\x00\xff\xff\xff\xfftb."
)


def test_an_array_that_python_2_wrote_is_read(read):
    np.testing.assert_array_equal(read(PYTHON2), np.array([1, -1], np.int32))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (os.system, "system"),
        (Trap(), "exec"),
        (eval, "eval"),
        (collections.OrderedDict(a=1), "OrderedDict"),
        (collections.defaultdict(int), "(int|long)"),
        (scipy.sparse.coo_matrix((2, 2)), "coo_matrix"),
        (1j, "complex"),
    ],
)
def test_every_other_name_is_refused_by_name_with_file_and_byte(read, value, name, protocol):
    with pytest.raises(InputError, match=rf"some\.pickle, byte \d+: it names .*({name}|_reconstructor)"):
        read(pickle.dumps(value, protocol))


def test_the_loader_of_pickle_is_never_called(read, monkeypatch):
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *a, **k: pytest.fail("the loader was called"))
    assert read(pickle.dumps({"a": np.arange(3)}))["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x02K\x01Q.", "BINPERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02cbuiltins\nlist\n.", "holds a name"),
        (b"\x80\x02cbuiltins\nlist\n)R.", "list with arguments"),
        (b"\x80\x02ccollections\ndefaultdict\ncbuiltins\nset\n\x85R.", "defaultdict with arguments"),
        (b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.", "encode with arguments"),
        (b"\x80\x02]K\x01}b.", "gives a state"),
        (b"\x80\x02K\x01K\x02.", "2 values"),
        (b"\x80\x02.", "0 values"),
        (b"\x80\x02K\x01a.", "do not fit|fills a list"),
        (b"\x80\x02K\x01e.", "needs a mark"),
        (b"\x80\x02h\x05.", "do not fit together"),
        (b"\x80\x02}(K\x01u.", "no value"),
        (b"\x80\x02\x86.", "more values than there are"),
        (b"\x80\x02K\x01", "not a pickle"),
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.", "not a pickle"),  # bytes that the file does not have
        (b"just text", "do not fit together"),
        (b"", "not a pickle"),
        (b"\x80\x02K\x01.K\x02.", "3 bytes follow"),
        (PYTHON2.replace(b"(K\x01K\x02\x85c", b"(K\x01K\x03\x85c"), "in 8 bytes"),
        (PYTHON2.replace(b"i4", b"O8"), "dtype 'O8'"),
        (PYTHON2.replace(b"U\x01<NNN", b"U\x01<NN}"), "gives a state"),
        (PYTHON2.split(b"(K\x01K\x02\x85")[0] + b".", "never came"),
    ],
)
def test_programs_that_are_no_data_are_refused(read, program, why):
    with pytest.raises(InputError, match=why):
        read(program)


def test_a_small_file_of_countless_shared_values_is_refused(read):
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    data = pickle.dumps(nested)
    assert len(data) < 1_000
    with pytest.raises(InputError, match="shared ones counted"):
        read(data)


def test_a_key_that_would_take_for_ever_to_hash_is_refused(read):
    program = b"\x80\x02}" + b")q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s."
    with pytest.raises(InputError, match="a key is neither"):
        read(program)


def test_a_value_inside_itself_and_one_too_deep_are_refused(read):
    inside = [1]
    inside.append(inside)
    with pytest.raises(InputError, match="inside itself"):
        read(pickle.dumps(inside))
    with pytest.raises(InputError, match="deeper than 100"):
        read(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


def test_limits_of_size_and_of_opcodes_are_refused_with_the_number(read):
    data = pickle.dumps(list(range(100)))
    with pytest.raises(InputError, match="at most 50 are read"):
        read(data, max_bytes=50)
    with pytest.raises(InputError, match="more than 10 opcodes"):
        read(data, max_items=10)


def test_a_memo_of_any_number_costs_one_entry(read):
    assert read(b"\x80\x02K\x05r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 5


def matrix(**state):
    parts = dict(_shape=(2, 3), indptr=np.array([0, 1, 2]), indices=np.array([0, 2]), data=np.ones(2))
    body = pickle.dumps(parts | state, 2)
    return b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)\x81" + body[2:-1] + b"b."


@pytest.mark.parametrize(
    "state",
    [
        dict(indices=np.array([0, 3])),
        dict(indices=np.array([-1, 0])),
        dict(indptr=np.array([0, 2, 1])),
        dict(indptr=np.array([0, 2])),
        dict(data=np.ones(1)),
        dict(_shape=(2, -3)),
        dict(data=None),
        dict(indptr=np.array([0.0, 1.0, 2.0])),
    ],
)
def test_a_matrix_whose_parts_do_not_fit_is_refused(read, state):
    assert read(matrix()).toarray().tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(InputError, match="CSR matrix"):
        read(matrix(**state))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_pickle(tmp_path / "no.pickle")


@pytest.mark.parametrize(
    "program", [b"]q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01\x93.", b"\x80\x02]q\x00]q\x00\x93."]
)
def test_a_refusal_prints_no_value_that_the_file_made(read, program):
    with pytest.raises(InputError, match="something that is not a text"):
        read(program)


def test_planetoid_files_are_read_as_the_loader_of_pickle_reads_them(shared_data):
    for name in ("x", "y", "tx", "ty", "allx", "ally", "graph"):
        path = shared_data / f"graph_cora/ind.cora.{name}"
        back = read_pickle(path)
        with open(path, "rb") as f:
            expected = pickle.load(f, encoding="latin1")
        if scipy.sparse.issparse(expected):
            assert back.shape == expected.shape and (back != expected).nnz == 0
        elif name == "graph":
            assert back == expected and type(back) is type(expected)
        else:
            np.testing.assert_array_equal(back, expected)
