"""The equations of a traced forward pass gathered into layers, each with one rule of relevance propagation.

kind          meaning                                                             inputs
conv, dense   weights times x and a bias, with the batch norm after it (folded)   one
affine        x * a + b by constants: batch norm not folded, embeddings           one
scale         x * a by constants                                                  one
activation    any elementwise function of one value: relu, gelu, x sigmoid(x)     one
norm          layer, group, RMS or L2 normalisation by x's own statistics         one
softmax       over some axes                                                      one
max_pool      over windows, whole axes or two values                              one or two
avg_pool      sums over windows or axes, fixed linear maps without weights        one
move          reshape, transpose, slice, pad, concat, mask, cast, ...             one or more
sum           a + b or a - b (residual)                                           two
gate          a * b, where one only weights the other (squeeze-excitation)        two
product       a * b of two equals                                                 two
matmul        a dot product of two values that depend on the image (attention)    two
unknown       anything else: a rule must be given                                 one or more

A layer is named by its linen path; all kinds but conv and dense append their kind ("layer1_0/sum").
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alignment.explain import graph

# Names of jaxpr primitives. A primitive in none of these sets makes a layer of kind "unknown", for which the caller
# has to name a rule: a guess could lose relevance silently.


def _words(text: str) -> set[str]:
    return set(text.split())


_UNARY = _words("""
    tanh logistic exp exp2 expm1 log log1p erf erfc erf_inv integer_pow square sqrt rsqrt cbrt abs sign sin cos tan
    asinh sinh cosh atan floor ceil round clamp max min pow
""")
_ELEMENTWISE = _UNARY | _words("add add_any sub mul div neg select_n eq ne lt le gt ge and or not xor")
_CASTS = _words("convert_element_type copy copy_p stop_gradient reduce_precision sharding_constraint")
_RESHAPES = _words("reshape transpose squeeze expand_dims broadcast_in_dim rev slice split")
_INDEXED = _words("gather dynamic_slice pad dynamic_update_slice")  # moves where the indices do not depend on the image
_MOVES = _CASTS | _RESHAPES | _INDEXED | {"concatenate"}
_WITHIN = _ELEMENTWISE | _CASTS | _RESHAPES | {"reduce_sum", "reduce_max", "gather"}  # in norms and softmax
_SHIFTS = _words("add add_any sub")
_AFFINE = _SHIFTS | _words("mul div neg")
_BOUNDED = _words("logistic tanh min clamp erf")  # mark the gate in a product of a gate and a signal
_POSITIVE = _words("exp exp2 logistic abs square erfc sqrt rsqrt iota argmax")  # whatever their input
# not negative where no input is negative
_KEEPS_SIGN = _MOVES | _words("""
    reduce_sum reduce_max reduce_min reduce_window_sum reduce_window_max cumsum tanh erf log1p expm1 add add_any mul div
    min integer_pow floor ceil round select_n dot_general conv_general_dilated
""")


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One step of the forward pass.

    Attributes:
        name: unique, from its linen path.
        kind: see the module docstring.
        index: its place in order of computation.
        in_shape: of the first input.
        out_shape: of the first output.
        is_first: a conv or dense layer without another one before it.
        inputs: value ids that depend on the image.
        outputs: value ids; one, except for a split.
        equations: its part of the forward pass.
        signal: of a gate: position of the input that is weighted.
        is_nonnegative: the first input cannot be negative (it comes from a ReLU).
        is_scaled: channels of a conv or dense layer are scaled by constants (a batch norm) folded into it.
    """

    name: str
    kind: str
    index: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    is_first: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    equations: tuple[graph.Equation, ...]
    signal: int = 0
    is_nonnegative: bool = False
    is_scaled: bool = False


def read(traced: graph.Graph, *, fold: bool = True) -> list[Layer]:
    """The layers between image and logits, in order of computation.

    Args:
        fold: whether constants of other modules (batch norm) are folded into the conv or dense layer before them.
    """
    reader = _Reader(traced, fold)
    positive = nonnegative(traced)
    linear: set[int] = set()  # values that depend on a conv or dense layer
    layers: list[Layer] = []
    names: Counter[str] = Counter()
    # A value that is made and read within one group needs no relevance of its own.
    for kind, equations in reader.groups():
        made = {value for e in equations for value in e.outputs}
        inputs = tuple(dict.fromkeys(v for e in equations for v in e.inputs if v in traced.reads_x and v not in made))
        outputs = equations[-1].outputs
        name = "/".join(part for part in (equations[0].path, "" if kind in ("conv", "dense") else kind) if part) or kind
        names[name] += 1
        is_linear = kind in ("conv", "dense")
        layers.append(
            Layer(
                name=name if names[name] == 1 else f"{name}_{names[name]}",
                kind=kind,
                index=len(layers),
                in_shape=traced.shapes[inputs[0]].shape,
                out_shape=traced.shapes[outputs[0]].shape,
                is_first=is_linear and linear.isdisjoint(inputs),
                inputs=inputs,
                outputs=outputs,
                equations=tuple(equations),
                signal=reader.signal(equations[-1]) or 0 if kind == "gate" else 0,
                is_nonnegative=inputs[0] in positive,
                is_scaled=is_linear and any(e.op in ("mul", "div") for e in equations),
            )
        )
        # `is_first` asks for a layer that no weights come before, on whatever way, skip connections included.
        if is_linear or not linear.isdisjoint(inputs):
            linear.update(outputs)
    return layers


def channel_axes(traced: graph.Graph, equation: graph.Equation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Output axes that the weights of a conv or dense equation make, and the axes of the weights that make them."""
    if equation.op == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        return (numbers.out_spec[1],), (numbers.rhs_spec[0],)
    at = weight_at(traced, equation)
    (contracted, _) = equation.params["dimension_numbers"]
    free = tuple(a for a in range(len(traced.shapes[equation.inputs[at]].shape)) if a not in contracted[at])
    # dot_general puts the free axes of its first operand before those of its second
    first = len(traced.shapes[equation.outputs[0]].shape) - len(free) if at == 1 else 0
    return tuple(range(first, first + len(free))), free


def weight_at(traced: graph.Graph, equation: graph.Equation) -> int:
    """The position of the weights among the inputs of a conv or dense equation."""
    return next(i for i, value in enumerate(equation.inputs) if value not in traced.reads_x)


def nonnegative(traced: graph.Graph) -> set[int]:
    """Values that cannot be negative whatever the image: outputs of ReLU, and values that keep their sign."""
    # One pass in order of computation: each equation's inputs are decided before it.
    safe = {value for value, array in traced.constants.items() if _is_nonnegative(array)}
    safe.update(value for value, aval in traced.shapes.items() if aval.dtype == bool)
    for e in traced.equations:
        if (
            e.op in _POSITIVE
            or (e.op == "max" and not safe.isdisjoint(e.inputs))
            or (e.op == "integer_pow" and e.params["y"] % 2 == 0)
            or (e.op in ("mul",) and len(set(e.inputs)) == 1)
            or (e.op == "clamp" and e.inputs[0] in safe)
            or (e.op in _KEEPS_SIGN and safe.issuperset(_signed_inputs(e)))
        ):
            safe.update(e.outputs)
    return safe


def _signed_inputs(equation: graph.Equation) -> Sequence[int]:
    """The inputs whose sign the output keeps: not the condition of a select, and not the indices of a gather."""
    if equation.op == "select_n":
        return equation.inputs[1:]
    return equation.inputs[:1] if equation.op in _INDEXED - {"pad", "dynamic_update_slice"} else equation.inputs


def _is_nonnegative(array: Any) -> bool:
    if not graph.is_number(array) or np.size(array) > 10_000:  # reading a large array costs more than it saves
        return False
    array = np.asarray(array)
    return array.dtype == bool or (array.dtype.kind in "fiu" and bool(np.all(array >= 0)))


# --- gathering equations ---------------------------------------------------------------------------------------------


class _Reader:
    """Groups equations into layers.

    A softmax, a norm or x sigmoid(x) is many equations, which fork from one value and join again. Such a region is
    recognised from its end: an equation with several inputs that all depend on the image through one common value
    alone. `source` records this value for each equation that can be part of a region; following it from value to value
    gives a ladder of ancestors, and the common value is the first that all ladders share.
    """

    def __init__(self, traced: graph.Graph, fold: bool):
        self.traced, self.fold = traced, fold
        # What the logits do not need gets no relevance.
        self.equations = [e for e in graph.needed(traced.equations, [traced.logits]) if e.reads_x]
        self.maker = {value: e for e in self.equations for value in e.outputs}
        self.readers: dict[int, list[graph.Equation]] = {}
        for e in self.equations:
            for value in set(e.inputs):
                self.readers.setdefault(value, []).append(e)
        self.weights = _from_arrays(traced)
        self.source: dict[int, int] = {}  # value -> the nearest one through which alone it depends on the image
        self.regions = self._regions()

    def groups(self) -> Iterator[tuple[str, list[graph.Equation]]]:
        """Pairs of a kind and its equations, each equation once."""
        taken: set[graph.Equation] = set()
        for equation in self.equations:
            if equation in taken:
                continue
            kind, members = self.regions.get(equation) or (self._kind(equation), [equation])
            if kind in ("conv", "dense", "affine", "norm"):
                members = members + self._chain(members[0], members[-1], kind)
            if kind == "affine" and not any(e.op in _SHIFTS for e in members):
                kind = "scale"
            taken.update(members)
            yield kind, members

    def own(self, equation: graph.Equation) -> list[int]:
        """Inputs that depend on the image."""
        return [value for value in equation.inputs if value in self.traced.reads_x]

    def shape(self, value: int) -> tuple[int, ...]:
        return self.traced.shapes[value].shape

    def _regions(self) -> dict[graph.Equation, tuple[str, list[graph.Equation]]]:
        """Equation -> kind and members of its region."""
        regions: dict[graph.Equation, tuple[str, list[graph.Equation]]] = {}
        for equation in self.equations:
            own = self.own(equation)
            if equation.op not in _WITHIN or len(equation.outputs) != 1:
                continue
            common = own[0] if len(own) == 1 else self._common(own)
            if common is None:
                continue
            self.source[equation.outputs[0]] = common
            if len(own) > 1:
                common = self._before_exp(common, equation)
                members = self._between(common, equation)
                kind = self._region_kind(common, members)
                if kind:
                    regions.update(dict.fromkeys(members, (kind, members)))
        return regions

    def _ladder(self, value: int) -> list[int]:
        """The value, its source, the source of that, and so on."""
        steps = [value]
        while steps[-1] in self.source:
            steps.append(self.source[steps[-1]])
        return steps

    def _common(self, values: list[int]) -> int | None:
        """The nearest value through which alone all of these depend on the image; None where there is none."""
        ladders = [self._ladder(value) for value in values]
        shared = set(ladders[0]).intersection(*ladders[1:])
        return next((value for value in ladders[0] if value in shared), None)

    def _before_exp(self, value: int, last: graph.Equation) -> int:
        """The input x of a softmax exp(x - max x) / sum, where `value` is its exponential; else `value`.

        The region found so far, e / sum(e), begins at the exponential; the softmax begins before it.
        """
        made = self.maker.get(value)
        if last.op != "div" or made is None or made.op != "exp":
            return value
        (value,) = self.own(made)
        shifted = self.maker.get(value)
        return self.source[value] if shifted is not None and len(self.own(shifted)) == 2 else value

    def _between(self, source: int, last: graph.Equation) -> list[graph.Equation]:
        """Equations on the way from `source` to `last`, in order of computation."""
        # Walks back from the end; `source` is where every way meets, so the walk cannot leave the region.
        members, open_values = {last}, set(self.own(last)) - {source}
        while open_values:
            equation = self.maker[open_values.pop()]
            members.add(equation)
            open_values.update(v for v in self.own(equation) if v != source and self.maker[v] not in members)
        return [e for e in self.equations if e in members]

    def _region_kind(self, source: int, members: list[graph.Equation]) -> str | None:
        """The kind of layer that these equations are together; None where they are not one."""
        ops, last = {e.op for e in members}, members[-1]
        inner = {value for e in members[:-1] for value in e.outputs}
        # an inner value that is read elsewhere would need relevance of its own
        leaks = any(reader not in members for value in inner for reader in self.readers.get(value, ()))
        if leaks or self.traced.logits in inner or self.shape(source) != self.shape(last.outputs[0]):
            return None
        if ops <= _ELEMENTWISE | _CASTS | {"broadcast_in_dim"}:
            return "activation"
        if {"exp", "reduce_sum"} <= ops:
            # a log-softmax must not pass for a chain of simple layers, and has no rule
            return "unknown" if "log" in ops else "softmax" if last.op == "div" else None
        is_norm = "reduce_sum" in ops and ops & {"rsqrt", "sqrt", "pow"} and last.op in ("mul", "div")
        return "norm" if is_norm else None

    def _chain(self, first: graph.Equation, last: graph.Equation, kind: str) -> list[graph.Equation]:
        """Equations after `last` that scale and shift its output by constants: a bias, a batch norm.

        The chain ends where a value has several readers, at the logits, at another module (unless batch norm is to be
        folded), and where a factor differs between pixels, which no kernel can absorb.
        """
        chain, value = [], last.outputs[0]
        while value != self.traced.logits and len(self.readers[value]) == 1:
            (equation,) = self.readers[value]
            is_cast = (
                equation.op == "convert_element_type" and self.traced.shapes[equation.outputs[0]].dtype.kind in "fV"
            )
            if not is_cast:
                is_near = equation.path == first.path or (self.fold and kind in ("conv", "dense"))
                if equation in self.regions or not is_near or not self._is_affine(equation):
                    break
                if kind in ("conv", "dense") and not self._is_by_channel(first, equation):
                    break
            chain.append(equation)
            value = equation.outputs[0]
        # a cast that nothing follows is a layer of its own, not the end of this one
        while chain and chain[-1].op == "convert_element_type" and kind != "norm":
            chain.pop()
        return chain

    def _is_affine(self, equation: graph.Equation) -> bool:
        """Whether the equation is x + b, x - b, b - x, x * a, x / a or -x, of the shape of x."""
        own = self.own(equation)
        return (
            equation.op in _AFFINE
            and len(own) == 1
            and not (equation.op == "div" and equation.inputs[0] != own[0])
            and self.shape(own[0]) == self.shape(equation.outputs[0])
        )

    def _is_by_channel(self, first: graph.Equation, equation: graph.Equation) -> bool:
        """Whether a factor is constant over pixels, so that the weights of `first` can absorb it."""
        if equation.op not in ("mul", "div"):
            return True
        axes, _ = channel_axes(self.traced, first)
        # The constant keeps its axes of size 1, so only an axis that the weights make may have more.
        shape = next(self.shape(value) for value in equation.inputs if value not in self.traced.reads_x)
        return all(size == 1 or axis in axes for axis, size in enumerate(shape))

    def _kind(self, equation: graph.Equation) -> str:
        """The kind of an equation that is no part of a region."""
        own, op = self.own(equation), equation.op
        others = [value for value in equation.inputs if value not in own]
        if op == "conv_general_dilated":
            return "unknown" if equation.inputs[0] not in own or len(own) > 1 else self._weighted(others, "conv")
        if op == "dot_general":
            if len(own) == 2:
                return "matmul"
            is_batched = bool(equation.params["dimension_numbers"][1][0])  # by constants of each image: no weights
            return "avg_pool" if is_batched else self._weighted(others, "dense")
        if op in _INDEXED:
            return "move" if own == [equation.inputs[0]] or op.startswith("dynamic_update") else "unknown"
        if op in _MOVES or (op == "select_n" and equation.inputs[0] not in own):
            return "move"
        if op in ("reduce_sum", "reduce_window_sum"):
            return "avg_pool"
        if op in ("reduce_max", "reduce_window_max") or (op in ("max", "min") and len(own) == 2):
            return "max_pool"
        if self._is_affine(equation):
            return "affine"
        if op in _SHIFTS and len(own) == 2:
            return "sum"
        if op == "mul" and len(own) == 2:
            return "product" if self.signal(equation) is None else "gate"
        is_alone = len(own) == 1 and self.shape(own[0]) == self.shape(equation.outputs[0])
        return "activation" if is_alone and op in _UNARY | {"select_n", "div"} else "unknown"

    def _weighted(self, others: list[int], kind: str) -> str:
        """`kind` where one of the other inputs comes from weights, else a fixed linear map."""
        return kind if any(value in self.weights for value in others) else "avg_pool"

    def signal(self, equation: graph.Equation) -> int | None:
        """The position of the input of a product that the other one weights; None for a product of two equals.

        The other is the one that is broadcast; where none or both are, the one that is bounded (a sigmoid).
        """
        for gates in (
            [self._is_broadcast(value, equation) for value in equation.inputs],
            [self._is_bounded(value) for value in equation.inputs],
        ):
            if sum(gates) == 1:
                return 1 - gates.index(True)
        return None

    def _is_broadcast(self, value: int, equation: graph.Equation) -> bool:
        if self.shape(value) != self.shape(equation.outputs[0]):
            return True
        maker = self.maker.get(value)
        return maker is not None and maker.op == "broadcast_in_dim" and self.shape(maker.inputs[0]) != self.shape(value)

    def _is_bounded(self, value: int) -> bool:
        made = [self.maker[step] for step in self._ladder(value) if step in self.maker]
        # A gate may be reshaped and scaled after its sigmoid; the last equation that does neither decides.
        near = [e for e in made if e.op not in _MOVES | {"mul", "div"}]
        return bool(near) and near[0].op in _BOUNDED


def _from_arrays(traced: graph.Graph) -> set[int]:
    """Values that come from weights: variables, arrays that the function closes over, and functions of these."""
    weights = set(traced.variables) | {value for value in traced.constants if traced.shapes[value].shape}
    for e in traced.equations:
        if not e.reads_x and not weights.isdisjoint(e.inputs):
            weights.update(e.outputs)
    return weights
