"""A forward pass as a list of equations: named values, what depends on the image, and the network after a layer.

`trace` reads the jaxpr of any `apply_fn(variables, x) -> logits` or `(logits, {name: activation})`: a linen module, or
a plain JAX function.  There are no hooks and no registry of layers; names are linen scope paths ("layer1_0/conv1"),
which each equation carries on its name stack, without the root module's class name.

    graph = trace(apply_fn, variables, x)                     equations, inlined; nothing is computed
    named(graph) -> {name: value id}                          what a layer may be called, in order of computation
    find(graph, layer) -> value id                            "" is the default layer (the last spatial activation)
    evaluate(graph, variables, x, replace=) -> {id: array}    the forward pass, some equations replaced on request
    split(apply_fn, variables, x, layer) -> (activation, head_fn)      head_fn(activation) -> logits_NC

Values are integers.  Call primitives (jit, remat, custom derivatives) are inlined; with `keep_custom=True` functions
with a derivative of their own are not, so that gradients through `evaluate` and `split` are the network's own.  All of
it works under jit.  Dimensions: N images, C classes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend import core

from alignment import errors
from alignment.explain import convolutions

_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
_CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_CONTROL = {
    "while": "a while loop (fori_loop with traced bounds)",
    "cond": "a branch on a traced value (lax.cond, lax.switch)",
    "scan": "a scan (nn.scan, lax.scan, fori_loop, lax.map)",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """`outputs = primitive(inputs)`; `path` is the linen scope, `reads_x` whether an input depends on the image."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    path: str
    reads_x: bool

    @property
    def op(self) -> str:
        return self.primitive.name

    def bind(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """The outputs for these inputs."""
        # XLA's gradient of a max-pool, a scatter, is twenty times slower on CPUs than ours
        if self.op == "reduce_window_max" and convolutions.is_plain_pool(self.params):
            (x_NYXC,) = arrays
            return (convolutions.max_pool(x_NYXC, self.params),)
        out = self.primitive.bind(*arrays, **self.primitive.get_bind_params(self.params))
        return tuple(out) if self.primitive.multiple_results else (out,)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A traced forward pass.

    Attributes:
        equations: in order of computation, only those that the logits or the activations need.
        constants: value id to array or number: literals and arrays that `apply_fn` closes over.
        variables: value ids of the leaves of `variables`.
        image: value id of x.
        logits: value id of the logits.
        activations: the dict that `apply_fn` returns beside the logits; empty where it returns logits alone.
        shapes: value id to shape and dtype (has `.shape`, `.dtype`).
        reads_x: value ids that depend on the image.
    """

    equations: tuple[Equation, ...]
    constants: dict[int, Any]
    variables: tuple[int, ...]
    image: int
    logits: int
    activations: dict[str, int]
    shapes: dict[int, Any]
    reads_x: frozenset[int]


def trace(
    apply_fn: Callable, variables: Any, x: Any, *, keep_custom: bool = False, allow_control: bool = False
) -> Graph:
    """Reads what `apply_fn(variables, x)` computes.

    Args:
        apply_fn: returns logits [N, C], or a pair of them and a dict of activations.
        variables: any tree of arrays (or of shapes).
        x: images; only shape and dtype are read.
        keep_custom: do not inline functions with a custom derivative.
        allow_control: let loops and branches that depend on the image stand as equations.

    Raises:
        InputError: for control flow that depends on the image, for outputs that are not logits, and for new batch
            statistics beside them.
    """
    # Shapes are all that this reads, so it costs neither arithmetic nor memory.
    closed, out = jax.make_jaxpr(apply_fn, return_shape=True)(variables, x)
    flat, _ = jax.tree_util.tree_flatten_with_path(out)
    builder = _Builder(keep_custom, allow_control)
    arguments = [builder.new(var.aval) for var in closed.jaxpr.invars]
    # `make_jaxpr` flattens its arguments in order: the leaves of the variables, then the image.
    image = arguments[-1]
    builder.reads_x.add(image)
    results = builder.inline(closed, arguments, prefix="")
    logits, activations = _outputs(out, flat, results)
    if logits not in builder.reads_x:
        raise errors.InputError("the logits do not depend on x; apply_fn(variables, x) must use its second argument")
    equations = needed(builder.equations, [logits, *activations.values()])
    return Graph(
        equations=tuple(_strip_root(equations)),
        constants=builder.constants,
        variables=tuple(arguments[:-1]),
        image=image,
        logits=logits,
        activations=activations,
        shapes=builder.shapes,
        reads_x=frozenset(builder.reads_x),
    )


def named(graph: Graph) -> dict[str, int]:
    """Names of layers -> values, in order of computation: activations, and by path the output of each module.

    A module's output is its last value that an equation outside of the module reads, or that is the logits.
    """
    made = {value: i for i, equation in enumerate(graph.equations) for value in equation.outputs}
    readers: dict[int, list[str]] = {}
    for equation in graph.equations:
        for value in equation.inputs:
            readers.setdefault(value, []).append(equation.path)
    scopes = {}
    for equation in graph.equations:
        for value in equation.outputs:
            if value in graph.reads_x:
                # The logits leave the network, so they count as read from outside every module.
                paths = [*readers.get(value, ()), *([""] if value == graph.logits else [])]
                for scope in _scopes(equation.path):
                    if any(not _inside(path, scope) for path in paths):
                        scopes[scope] = value
    names = {**scopes, **{name: value for name, value in graph.activations.items() if value in graph.reads_x}}
    return dict(sorted(names.items(), key=lambda item: made.get(item[1], -1)))


def find(graph: Graph, layer: str = "") -> int:
    """The value called `layer`; "" is the last activation with rows and columns (of the returned ones, if any).

    Raises:
        InputError: for an unknown name, with the known ones; for "" where nothing has rows and columns.
    """
    names = named(graph)
    if not layer:
        spatial = _spatial(graph, graph.activations) or _spatial(graph, names)
        if not spatial:
            raise errors.InputError(
                "no activation of this network has rows and columns ([N, Y, X, C]); name a layer: " + ", ".join(names)
            )
        return spatial[-1]
    return names[errors.one_of("layer", layer, names)]


def evaluate(
    graph: Graph, variables: Any, x: jax.Array, *, replace: Callable[[Equation], Callable | None] | None = None
) -> dict[int, Any]:
    """All values of the forward pass.

    Args:
        replace: called with each equation that depends on x; a function it returns takes the equation's inputs and
            returns its outputs as a tuple (guided backpropagation replaces ReLU in this way).

    Returns:
        Value id to array.
    """
    values = arguments(graph, variables)
    values[graph.image] = x
    run(graph.equations, values, replace)
    return values


def run(
    equations: Iterable[Equation],
    values: dict[int, Any],
    replace: Callable[[Equation], Callable | None] | None = None,
) -> None:
    """Adds the outputs of the equations to `values`."""
    for equation in equations:
        fn = replace(equation) if replace is not None and equation.reads_x else None
        out = (fn or equation.bind)(*(values[value] for value in equation.inputs))
        values.update(zip(equation.outputs, out, strict=True))


def split(
    apply_fn: Callable,
    variables: Any,
    x: jax.Array,
    layer: str | int = "",
    *,
    replace: Callable[[Equation], Callable | None] | None = None,
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The activation of a layer, and the rest of the network as a function of it.

    `head_fn` computes only the equations after the layer; values that reach the logits on other ways (a skip connection
    around the layer) are constants in it.  Several targets share the forward pass:

        activation, head_fn = split(apply_fn, variables, x, "layer4")
        logits_NC, pullback = jax.vjp(head_fn, activation)

    A layer is a name, or a value id of `trace(..., keep_custom=True)`.

    Raises:
        InputError: for an unknown name, with the known ones.
    """
    graph = trace(apply_fn, variables, x, keep_custom=True)
    layer_value = layer if isinstance(layer, int) else find(graph, layer)
    below = {layer_value}  # values that depend on the layer
    head = []
    # Equations come in order of computation, so that one pass meets every value before its readers.
    for equation in needed(graph.equations, [graph.logits]):
        if layer_value not in equation.outputs and not below.isdisjoint(equation.inputs):
            below.update(equation.outputs)
            head.append(equation)
    if graph.logits not in below:
        raise errors.InputError(f"the logits do not depend on layer {layer!r}; name one before them")
    values = arguments(graph, variables)
    values[graph.image] = x
    # What depends on the layer is left to `head_fn`, so nothing is computed twice.
    run([e for e in graph.equations if below.isdisjoint(e.outputs) or layer_value in e.outputs], values, replace)

    def head_fn(activation):
        later = {**values, layer_value: activation}
        run(head, later, replace)
        return later[graph.logits]

    return values[layer_value], head_fn


def is_relu(graph: Graph, equation: Equation) -> bool:
    """Whether the equation is jax.nn.relu, inlined or not, or max(x, 0).

    max(0, E x^2 - (E x)^2) is not one: linen's normalisations keep a variance from becoming negative in this way.
    """
    if equation.op == "max":
        is_zero = [value in graph.constants and _is_zero(graph.constants[value]) for value in equation.inputs]
        return any(is_zero) and not (is_zero[0] and _is_variance(graph, equation.inputs[1]))
    if equation.op in _CUSTOM and len(equation.inputs) == 1:
        inner = _body(equation.params)
        # jax.nn.relu is a custom_jvp around a jit around max(x, 0)
        while len(inner.eqns) == 1 and inner.eqns[0].primitive.name in _CALLS:
            inner = _body(inner.eqns[0].params)
        if len(inner.eqns) == 1 and inner.eqns[0].primitive.name == "max":
            return any(isinstance(atom, core.Literal) and _is_zero(atom.val) for atom in inner.eqns[0].invars)
    return False


def _is_variance(graph: Graph, value: int) -> bool:
    """Whether a value is something less a square, as linen's normalisations compute a variance."""
    made = {value: equation for equation in graph.equations for value in equation.outputs}
    maker = made.get(value)
    if maker is None or maker.op != "sub":
        return False
    square = made.get(maker.inputs[1])
    # A product of a value with itself is a square too; JAX writes x * x in this way.
    return square is not None and (square.op in ("square", "integer_pow") or len(set(square.inputs)) == 1)


# --- reading a jaxpr -------------------------------------------------------------------------------------------------


class _Builder:
    """Flattens nested jaxprs into one list of equations, with numbers of their own for the values.

    Numbers are needed because a jaxpr's variables are local to it: a function that is called twice brings the same
    variables twice, with different values.
    """

    def __init__(self, keep_custom: bool, allow_control: bool = False):
        self.keep_custom, self.allow_control = keep_custom, allow_control
        self.equations: list[Equation] = []
        self.constants: dict[int, Any] = {}
        self.shapes: dict[int, Any] = {}
        self.reads_x: set[int] = set()

    def new(self, aval: Any) -> int:
        """The number of a new value."""
        value = len(self.shapes)
        self.shapes[value] = aval
        return value

    def constant(self, array: Any, aval: Any) -> int:
        value = self.new(aval)
        self.constants[value] = array
        return value

    def inline(self, closed: Any, arguments: list[int], prefix: str) -> list[int]:
        """Adds the equations of a jaxpr; returns the value ids of its results.

        Args:
            closed: a jaxpr, closed (with constants) or open; call primitives hold one or the other.
            arguments: value ids of its inputs.
            prefix: path of the call; name stacks inside a called jaxpr begin anew.
        """
        jaxpr = getattr(closed, "jaxpr", closed)
        ids = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, array in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True):
            ids[var] = self.constant(array, var.aval)

        def read(atom) -> int:
            return self.constant(atom.val, atom.aval) if isinstance(atom, core.Literal) else ids[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            path = "/".join(part for part in (prefix, str(eqn.source_info.name_stack)) if part)
            name = eqn.primitive.name
            if name in _CALLS or (name in _CUSTOM and not self.keep_custom):
                # The body of a call counts as written out here, so that rules see the same equations with and without
                # jit.
                outputs = self.inline(_closed(eqn.params), inputs, path)
            else:
                outputs = self.add(eqn, inputs, path)
            ids.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, eqn: Any, inputs: list[int], path: str) -> list[int]:
        """Adds one equation; returns the value ids of its outputs."""
        reads_x = any(value in self.reads_x for value in inputs)
        if reads_x and eqn.primitive.name in _CONTROL and not self.allow_control:
            raise errors.InputError(
                f"{_CONTROL[eqn.primitive.name]} in {path or 'apply_fn'} depends on the image, and an explanation "
                "walks a program of fixed length; write it out (a Python loop over layers, jnp.where for a branch)"
            )
        outputs = [self.new(var.aval) for var in eqn.outvars]
        if reads_x:
            self.reads_x.update(outputs)
        self.equations.append(Equation(eqn.primitive, eqn.params, tuple(inputs), tuple(outputs), path, reads_x))
        return outputs


def _closed(params: dict[str, Any]) -> Any:
    # custom_jvp_call and custom_vjp_call keep their jaxpr under another name than jit and remat do
    return params["call_jaxpr"] if "call_jaxpr" in params else params["jaxpr"]


def _body(params: dict[str, Any]) -> Any:
    closed = _closed(params)
    return getattr(closed, "jaxpr", closed)


def is_number(array: Any) -> bool:
    """Whether numpy can read it: not inside a trace, and not a typed random key that a network closes over."""
    dtype = getattr(array, "dtype", None)
    is_key = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
    return not is_key and not isinstance(array, jax.core.Tracer)


def _is_zero(value: Any) -> bool:
    return is_number(value) and getattr(value, "ndim", 0) == 0 and float(value) == 0


def needed(equations: Sequence[Equation], targets: Iterable[int]) -> list[Equation]:
    """The equations on which the target values depend."""
    values, needed_last_first = set(targets), []
    # From the end backwards, one pass finds all ancestors of the targets.
    for equation in reversed(equations):
        if not values.isdisjoint(equation.outputs):
            values.update(equation.inputs)
            needed_last_first.append(equation)
    return needed_last_first[::-1]


def _outputs(out: Any, flat: list, results: list[int]) -> tuple[int, dict[str, int]]:
    """Value ids of the logits and of the named activations."""
    ids = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(out), results)
    logits, activations = ids, {}
    if isinstance(ids, tuple | list):
        logits, activations = ids[0], (ids[1] if len(ids) > 1 and isinstance(ids[1], dict) else {})
    shape = getattr(flat[0][1], "shape", None) if flat else None
    if not isinstance(logits, int) or shape is None or len(shape) != 2:
        raise errors.InputError(
            f"apply_fn must return logits [N, C], alone or before a dict of activations; its first output is {shape}"
        )
    named_ids = {}
    for path, value in jax.tree_util.tree_flatten_with_path(activations)[0]:
        named_ids["/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)] = value
    return logits, named_ids


def _strip_root(equations: list[Equation]) -> list[Equation]:
    """Paths without the root module's class name, which every linen scope begins with, and without method names."""
    roots = {equation.path.split("/")[0].split(".")[0] for equation in equations if equation.path}
    has_root = len(roots) == 1 and next(iter(roots))[:1].isupper()
    return [dataclasses.replace(equation, path=_modules(equation.path, has_root)) for equation in equations]


def _modules(path: str, has_root: bool) -> str:
    """Module names of a path; linen writes a call of another method than __call__ as "block0/block0._attend"."""
    parts = path.split("/")
    names = [part for i, part in enumerate(parts) if not i or part.split(".")[0] != parts[i - 1] or "." not in part]
    return "/".join(names[1:] if has_root else names)


def _scopes(path: str) -> list[str]:
    """A path and the paths of all modules around it."""
    parts = path.split("/") if path else []
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _inside(path: str, scope: str) -> bool:
    return path == scope or path.startswith(scope + "/")


def _spatial(graph: Graph, names: dict[str, int]) -> list[int]:
    """Those of the named values that have rows and columns."""
    shapes = {value: graph.shapes[value].shape for value in names.values() if value in graph.reads_x}
    return [value for value, shape in shapes.items() if len(shape) == 4 and shape[1] * shape[2] > 1]


def arguments(graph: Graph, variables: Any) -> dict[int, Any]:
    """The values that are known before the forward pass: constants and weights."""
    return {**graph.constants, **dict(zip(graph.variables, jax.tree_util.tree_leaves(variables), strict=True))}
