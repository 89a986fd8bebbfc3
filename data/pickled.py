"""Read a pickle as data: opcodes are interpreted here, and nothing that the file names is imported or called.

A pickle is a program for a small stack machine, and Python's loader calls whatever callable the program names. This
machine knows numbers, strings, bytes, lists, tuples, dicts, sets, `defaultdict(list)`, numpy arrays and scalars, and
scipy's `csr_matrix`; it makes these itself and refuses every other name. Files of Python 2 are read as with
`encoding="latin1"`.
"""

import collections
import math
import os
import pathlib
import pickletools
import re
from typing import Any, Literal, NoReturn

import numpy as np
import scipy.sparse

from alignment.errors import InputError

MAX_BYTES = 4 * 2**30
MAX_ITEMS = 50_000_000  # opcodes of the file, and values of the result with shared ones counted each time
MAX_DEPTH = 100  # containers inside one another

# What a file may name, under the module names of Python 2 and 3 and of old and new numpy and scipy.
NAMES = {
    **{f"{module} {name}": name for module in ("__builtin__", "builtins") for name in ("list", "set", "frozenset")},
    **{f"{module} bytes": "bytes" for module in ("__builtin__", "builtins")},
    "collections defaultdict": "defaultdict",
    "_codecs encode": "encode",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    **{
        f"numpy.{core}.{module} {name}": name
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    **{f"scipy.sparse.{module} csr_matrix": "csr_matrix" for module in ("csr", "_csr")},
}
VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
SCALARS = (int, float, str, bytes, bool, type(None), np.generic)


def read_pickle(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, max_items: int = MAX_ITEMS) -> object:
    """The value that a pickle file describes; nothing in it runs.

    Args:
        max_bytes: size of the file, at most.
        max_items: opcodes of the file, and values of the result where one that is reached in two ways counts twice. A
            small file can otherwise name a list of lists of lists that nobody can walk through.

    Raises:
        InputError: a file that is not there, too large, cut off or not a pickle; a name or opcode that is not data; a
            value inside itself, or too deep; an array or matrix whose parts do not fit. Each says file and byte.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there; name a pickle file")
    if path.stat().st_size > max_bytes:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes, and at most {max_bytes:,} are read")
    data = path.read_bytes()
    machine = _Machine(path, max_items)
    try:
        # Bytes, since reading a length that the file only claims then ends at the file's end and allocates no more.
        for opcode, argument, position in pickletools.genops(data):
            machine.position = position or 0
            machine.step(opcode.name, argument)
    except InputError:
        raise
    except (ValueError, OverflowError) as e:  # of pickletools, and of numpy where parts do not fit
        raise InputError(f"{path}, byte {machine.position:,}: this is not a pickle that can be read: {e}") from e
    except (IndexError, KeyError, TypeError) as e:
        raise InputError(f"{path}, byte {machine.position:,}: the pickle's opcodes do not fit together: {e!r}") from e
    if machine.position + 1 != len(data):
        machine.refuse(f"the pickle ends, and {len(data) - machine.position - 1:,} bytes follow; one value a file")
    return machine.result()


class _Name:
    """A name of NAMES, as it lies on the stack until a later opcode uses it."""

    def __init__(self, name: str):
        self.name = name


class _Unfinished:
    """An array or matrix before its state came; `places` are the memo's entries that wait for it."""

    def __init__(self, kind: str):
        self.kind = kind
        self.places: list[int] = []


class _DType:
    """A numpy dtype, whose byte order comes after it was made."""

    def __init__(self, code: str):
        self.dtype = np.dtype(code)


class _Machine:
    """The stack, the marks in it, and the memo."""

    def __init__(self, path: pathlib.Path, max_items: int):
        self.path = path
        self.max_items = max_items
        self.position = 0
        self.num_steps = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.path}, byte {self.position:,}: {why}")

    def step(self, opcode: str, argument: Any) -> None:
        self.num_steps += 1
        if self.num_steps > self.max_items:
            self.refuse(f"the pickle has more than {self.max_items:,} opcodes")
        if opcode in VALUES:
            self.stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in TUPLES:
            self.stack.append(tuple(self.pop_last(TUPLES[opcode])))
        elif opcode in PUTS:
            self.remember(int(argument))
        elif opcode == "MEMOIZE":
            self.remember(len(self.memo))
        elif opcode in GETS:
            self.stack.append(self.memo[int(argument)])
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            self.name(argument.split(" ") if opcode == "GLOBAL" else self.pop_last(2))
        elif opcode in ("REDUCE", "NEWOBJ"):
            name, arguments = self.pop_last(2)
            if not isinstance(name, _Name) or not isinstance(arguments, tuple):
                self.refuse(f"{opcode} of something that is not a name with arguments")
            self.stack.append(self.made(name.name, arguments))
        elif opcode == "BUILD":
            self.build()
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            self.step_container(opcode)

    def name(self, words: list[Any]) -> None:
        # Only texts are joined: to print a list that the file made could take for ever.
        if not all(isinstance(word, str) for word in words):
            self.refuse("it names something that is not a text; nothing but data is read")
        name = " ".join(words)
        if name not in NAMES:
            self.refuse(f"it names {name[:100].replace(' ', '.')}, which is not data; nothing but data is read")
        self.stack.append(_Name(NAMES[name]))

    def step_container(self, opcode: str) -> None:
        """Opcodes that make or fill lists, tuples, dicts and sets, or move the stack."""
        empty = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
        if opcode in empty:
            self.stack.append(empty[opcode]())
        elif opcode == "MARK":
            self.marks.append(len(self.stack))
        elif opcode == "POP":
            if self.marks and self.marks[-1] == len(self.stack):
                self.marks.pop()
            else:
                self.stack.pop()
        elif opcode == "POP_MARK":
            self.pop_mark()
        elif opcode == "DUP":
            self.stack.append(self.stack[-1])
        elif opcode == "TUPLE":
            self.stack.append(tuple(self.pop_mark()))
        elif opcode == "LIST":
            self.stack.append(self.pop_mark())
        elif opcode == "FROZENSET":
            self.stack.append(frozenset(map(self.key, self.pop_mark())))
        elif opcode in ("APPEND", "APPENDS"):
            items = self.pop_last(1) if opcode == "APPEND" else self.pop_mark()
            self.top(list).extend(items)
        elif opcode == "DICT":
            items = self.pop_mark()
            self.stack.append({})
            self.set_items(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop_last(2) if opcode == "SETITEM" else self.pop_mark())
        elif opcode == "ADDITEMS":
            items = self.pop_mark()
            self.top(set).update(map(self.key, items))
        else:
            self.refuse(f"it has the opcode {opcode}, which is not of data; nothing but data is read")

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            self.refuse(f"it fills a {kind.__name__}, and what lies there is none")
        return self.stack[-1]

    def pop_last(self, number: int) -> list[Any]:
        if number > len(self.stack):
            self.refuse("an opcode needs more values than there are")
        items = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return items

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            self.refuse("an opcode needs a mark, and there is none")
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            self.refuse("a key of a dict has no value")
        self.top(dict).update((self.key(key), value) for key, value in zip(items[::2], items[1::2]))

    def key(self, value: Any) -> Any:
        """A key of a dict or set: hashing tuples of shared tuples could take for ever, so they hold scalars alone."""
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, SCALARS) for part in parts):
            self.refuse("a key is neither a number, a text nor a tuple of them")
        return value

    def remember(self, place: int) -> None:
        value = self.memo[place] = self.stack[-1]
        if isinstance(value, _Unfinished):
            value.places.append(place)

    def made(self, name: str, arguments: tuple) -> Any:
        """What Python would get by calling a name of NAMES."""
        match name, arguments:
            case "defaultdict", (_Name(name="list"),):
                return collections.defaultdict(list)
            case (("set" | "frozenset"), ([*items],)):
                return (set if name == "set" else frozenset)(map(self.key, items))
            case "bytes", ():
                return b""
            case "encode", (str(text), "latin1" | "latin-1"):
                return text.encode("latin1")
            case "_reconstruct", (_Name(name="ndarray"), (0,), str() | bytes()):
                return _Unfinished("ndarray")
            case "csr_matrix", ():
                return _Unfinished("csr_matrix")
            case "dtype", (str(code), *_):
                if not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,6}", code):
                    self.refuse(f"an array of dtype {code[:20]!r}; numbers, booleans and texts of one length are read")
                return _DType(code)
            case "scalar", (_DType(), str() | bytes()):
                return self.array(arguments[0], (), arguments[1], "C")[()]
            case "_frombuffer", (str() | bytes(), _DType(), tuple(), "C" | "F"):
                raw, dtype, shape, order = arguments
                return self.array(dtype, shape, raw, order)
        self.refuse(f"{name} with arguments that it does not have as data")

    def build(self) -> None:
        """Give the state to the dtype, array or matrix below it."""
        item, state = self.pop_last(2)
        match item, state:
            case _DType(), (int(), "<" | ">" | "=" | "|" as order, None, None, None, *_):
                item.dtype = item.dtype.newbyteorder(order)
                self.stack.append(item)
            case _Unfinished(kind="ndarray"), (int(), tuple(shape), _DType() as dtype, is_fortran, str() | bytes()):
                self.finish(item, self.array(dtype, shape, state[-1], "F" if is_fortran else "C"))
            case _Unfinished(kind="csr_matrix"), dict():
                self.finish(item, self.matrix(state))
            case _:
                self.refuse("it gives a state to something that is neither a dtype, an array nor a CSR matrix")

    def finish(self, item: _Unfinished, value: Any) -> None:
        self.stack.append(value)
        for place in item.places:
            if self.memo.get(place) is item:
                self.memo[place] = value

    def array(self, dtype: _DType, shape: tuple, raw: str | bytes, order: Literal["C", "F"]) -> np.ndarray:
        """An array of its own, in this machine's byte order."""
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            self.refuse("an array whose shape is not whole numbers from 0 on")
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            self.refuse(f"an array of shape {shape} and dtype {dtype.dtype} in {len(raw):,} bytes")
        flat = np.frombuffer(raw, dtype.dtype)
        return flat.reshape(shape, order=order).astype(dtype.dtype.newbyteorder("="))

    def matrix(self, state: dict) -> scipy.sparse.csr_matrix:
        """A CSR matrix whose rows and columns lie inside its shape."""
        parts: list[Any] = [state.get(name) for name in ("data", "indices", "indptr")]
        shape = state.get("_shape", state.get("shape"))
        if not (isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(s, int) and s >= 0 for s in shape)):
            self.refuse("a CSR matrix whose shape is not two whole numbers from 0 on")
        if not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in parts):
            self.refuse("a CSR matrix without data, indices and indptr, arrays of one dimension")
        data, indices, indptr = parts
        if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu" or data.dtype.kind not in "biufc":
            self.refuse(f"a CSR matrix with dtypes {data.dtype}, {indices.dtype} and {indptr.dtype}")
        fits = len(indptr) == shape[0] + 1 and len(data) == len(indices)
        fits = fits and indptr[0] == 0 and indptr[-1] == len(indices) and bool(np.all(indptr[:-1] <= indptr[1:]))
        if not fits or (len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < shape[1]):
            self.refuse(f"a CSR matrix of shape {shape} whose indices do not fit it")
        return scipy.sparse.csr_matrix((data, indices, indptr), shape=shape)

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            self.refuse(f"it ends with {len(self.stack)} values in place of one")
        self.weigh(self.stack[0], 0, {})
        return self.stack[0]

    def weigh(self, value: Any, depth: int, weights: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
        """How many values one holds, shared ones counted each time, and how deep it is.

        Args:
            weights: of the containers met so far, by id; None for those that the value lies in.
        """
        if isinstance(value, (_Name, _Unfinished, _DType)):
            self.refuse("the value holds a name, a dtype, or an array whose content never came")
        if not isinstance(value, (list, tuple, dict, set, frozenset)):
            return 1, 0
        if id(value) in weights:
            weight = weights[id(value)]
            if weight is None:
                self.refuse("a value lies inside itself")
        else:
            if depth >= MAX_DEPTH:
                self.refuse(f"values lie inside one another, deeper than {MAX_DEPTH}")
            weights[id(value)] = None
            number = height = 0
            for item in value.values() if isinstance(value, dict) else value:
                more, higher = self.weigh(item, depth + 1, weights)
                number, height = number + more, max(height, higher)
                if number > self.max_items:
                    self.refuse(f"it describes more than {self.max_items:,} values, shared ones counted each time")
            weight = weights[id(value)] = (number + 1, height + 1)
        if depth + weight[1] > MAX_DEPTH:
            self.refuse(f"values lie inside one another, deeper than {MAX_DEPTH}")
        return weight
